"""Whether a student that is taught by its own average still learns: the ways in which it can stop, by name.

A self-distilling network can please itself with answers that say nothing of the picture. DINO sec. 5.3 (arXiv
2104.14294) names two: one prototype for everything, and all prototypes alike; between them lies any other answer that
is the same for all pictures. All lower the loss. Besides, the features may fill few dimensions (Jing et al. 2022,
arXiv 2110.09348). The loss tells none of that from learning.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import reduce
from typing import Any

from synoptic.config import TrainConfig
from synoptic.methods.base import Diagnosis

PATIENCE = 3  # looks in a row that find the same, before it is told
SETTLED = 0.1  # share of the run after which a start that is still soft is no excuse

FEW_PROTOTYPES = 2.0  # effective number of prototypes in use
UNIFORM = 0.98  # entropy of the targets, of its largest value
AGREED = 0.005  # divergence of the student from its targets, of the largest entropy
FEW_DIMENSIONS = 3.0  # RankMe of the embeddings
DIVERGED = 1.5  # loss, of that of guessing; it must have risen, since small heads may begin there

# Their mends are templates, from which `fitted` makes what suits a run.
WINS = Diagnosis(
    "one prototype wins",
    "every picture gets the same answer: nothing balances the prototypes, or too weakly for so low a temperature",
    "centring=sinkhorn, a higher teacher_temperature, a lower optim.lr",
)
ALIKE = Diagnosis(
    "uniform output",
    "all prototypes are equally likely for every picture: the teacher's answers are too soft to say anything, or so "
    "much the same that nothing is left of them once they are balanced",
    "sharpening=true, a lower teacher_temperature, fewer prototypes",
)
SAME = Diagnosis(
    "constant output",
    "every picture gets the same answer, spread over several prototypes: nothing pulls the answers apart",
    "centring=sinkhorn, sharpening=true, a lower optim.lr",
)
FLAT = Diagnosis(
    "dimensional collapse",
    "the embeddings fill few of their dimensions: different pictures lie on a line or nearly so",
    "a higher koleo, a lower optim.lr, a larger batch",
)
AWAY = Diagnosis(
    "diverged",
    "the loss is far above that of guessing: the student runs away from its teacher",
    "precision=fp32, a lower optim.lr, a longer optim.warmup, a lower optim.clip",
)


class CollapseWatch:
    """Looks at what is logged, and names what went wrong once it has stayed so for some looks.

    Args:
        config: of the run, resolved.
        prototypes: its key that holds K.
    """

    def __init__(self, config: TrainConfig, prototypes: str = "prototypes"):
        self._config, self._key = config, prototypes
        self._prototypes: int = getattr(config, prototypes)
        self._found: Diagnosis | None = None
        self._times = 0
        self._told: Diagnosis | None = None
        self._judged: dict[str, float] = {}
        self._start: float | None = None  # loss at the first look

    def look(self, terms: Mapping[str, float], scores: Mapping[str, float], progress: float) -> Diagnosis | None:
        """The diagnosis, at the look that makes the last ones enough; not again until as many looks found none or
        another, so that a run at the edge does not tell it over and over.

        Args:
            terms: means since the last look: "loss" (cross entropy with the targets, nats), "target_entropy" (nats),
                "prototypes_used".
            scores: of the last evaluation; "rankme" where it was found.
            progress: share of the run done.
        """
        if self._start is None:
            self._start = terms["loss"]
        found = self._named(terms, scores, progress)
        if found is FLAT and dict(scores) == self._judged:
            return None  # nothing new: the scores are those of the last look
        self._judged = dict(scores)
        self._times = self._times + 1 if found is self._found else 1
        self._found = found
        if self._times != PATIENCE or found is self._told:
            return None
        self._told = found
        return found and fitted(found, self._config, self._key)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that a run says the same wherever it was interrupted."""
        found, told = (ill and ill.name for ill in (self._found, self._told))
        return {"found": found, "times": self._times, "told": told, "judged": self._judged, "start": self._start}

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes back to a state."""
        ills: dict[str | None, Diagnosis] = {ill.name: ill for ill in (WINS, ALIKE, SAME, FLAT, AWAY)}
        self._found, self._told = ills.get(state["found"]), ills.get(state.get("told"))  # not told by older ones
        self._times, self._judged, self._start = state["times"], dict(state["judged"]), state["start"]

    def _named(self, terms: Mapping[str, float], scores: Mapping[str, float], progress: float) -> Diagnosis | None:
        guessing = math.log(self._prototypes)
        if terms["prototypes_used"] * self._prototypes < FEW_PROTOTYPES:
            return WINS
        if progress < SETTLED:
            return None
        if terms["loss"] > max(DIVERGED * guessing, self._start or 0.0):
            return AWAY
        if terms["target_entropy"] > UNIFORM * guessing:
            return ALIKE
        if terms["loss"] - terms["target_entropy"] < AGREED * guessing:
            return SAME  # what one crop says can be told from any other crop without a rest (DINO fig. 7, right)
        return FLAT if scores.get("rankme", math.inf) < FEW_DIMENSIONS else None


def fitted(ill: Diagnosis, config: TrainConfig, prototypes: str = "prototypes") -> Diagnosis:
    """A diagnosis whose mends suit a run: none that it has already, and where to go from what it has.

    Args:
        ill: its mend is a list of settings ("key=value") and of directions ("a lower key").
        config: of the run, resolved.
        prototypes: the key that holds the number of prototypes.
    """
    mends = []
    for mend in ill.mend.split(", "):
        change, _, key = mend.rpartition(" ")
        key, _, value = (prototypes if key == "prototypes" else key).partition("=")
        now = reduce(getattr, key.split("."), config)
        if not value:
            mends.append(f"{change} {key} (now {f'{now:.3g}' if isinstance(now, float) else now})")
        elif str(now).lower() != value:
            mends.append(f"{key}={value}")
    return replace(ill, mend=", ".join(mends))

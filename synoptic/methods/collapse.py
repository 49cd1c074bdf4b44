"""Whether a student that is taught by its own average still learns: the ways in which it can stop, by name.

A self-distilling network can please itself with answers that say nothing of the picture. DINO sec. 5.3 (arXiv
2104.14294) names two: one prototype for everything, and all prototypes alike; between them lies any other answer that
is the same for all pictures. All lower the loss. Besides, the features may fill few dimensions (Jing et al. 2022,
arXiv 2110.09348). The loss tells none of that from learning.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from synoptic.methods.base import Diagnosis

PATIENCE = 3  # looks in a row that find the same, before it is told
SETTLED = 0.1  # share of the run after which a start that is still soft is no excuse

FEW_PROTOTYPES = 2.0  # effective number of prototypes in use
UNIFORM = 0.98  # entropy of the targets, of its largest value
AGREED = 0.005  # divergence of the student from its targets, of the largest entropy
FEW_DIMENSIONS = 3.0  # RankMe of the embeddings
DIVERGED = 1.5  # loss, of that of guessing; it must have risen, since small heads may begin there

WINS = Diagnosis(
    "one prototype wins",
    "every picture gets the same answer: nothing balances the prototypes, or too weakly for so low a temperature",
    "centring=sinkhorn, a higher teacher_temperature or a lower optim.lr",
)
ALIKE = Diagnosis(
    "uniform output",
    "all prototypes are equally likely for every picture: the teacher's answers are too soft to say anything, or so "
    "much the same that nothing is left of them once they are balanced",
    "sharpening=true, a lower teacher_temperature (0.02), fewer prototypes",
)
SAME = Diagnosis(
    "constant output",
    "every picture gets the same answer, spread over several prototypes: nothing pulls the answers apart",
    "centring=sinkhorn, sharpening=true, a lower optim.lr",
)
FLAT = Diagnosis(
    "dimensional collapse",
    "the embeddings fill few of their dimensions: different pictures lie on a line or nearly so",
    "koleo=0.1, a lower optim.lr, larger batches",
)
AWAY = Diagnosis(
    "diverged",
    "the loss is far above that of guessing: the student runs away from its teacher",
    "a lower optim.lr, a longer optim.warmup, a stronger optim.clip or precision=fp32",
)


class CollapseWatch:
    """Looks at what is logged, and names what went wrong once it has stayed so for some looks.

    Args:
        prototypes: K.
    """

    def __init__(self, prototypes: int):
        self._prototypes = prototypes
        self._found: Diagnosis | None = None
        self._times = 0
        self._judged: dict[str, float] = {}
        self._start: float | None = None  # loss at the first look

    def look(self, terms: Mapping[str, float], scores: Mapping[str, float], progress: float) -> Diagnosis | None:
        """The diagnosis, at the look that makes the last ones enough; not again while it stays the same.

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
        return found if self._times == PATIENCE else None

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that a run says the same wherever it was interrupted."""
        found = self._found and self._found.name
        return {"found": found, "times": self._times, "judged": self._judged, "start": self._start}

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes back to a state."""
        self._found = next((ill for ill in (WINS, ALIKE, SAME, FLAT, AWAY) if ill.name == state["found"]), None)
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

"""1,203 names on one picture: as many as LVIS has, packed into prompts of 256 tokens, and what prompts cost each other.

    python benchmarks/thousand_names.py [--names 1203] [--vocabulary vocab.txt]

A full-size Grounding DINO with a Swin-T and random weights, on two threads, and a picture of 480 x 640 pixels. Names
are words of BERT's vocabulary, one or two each. Fusion, which begins with a ten-thousandth of what it finds, adds all
of it, so that names do weigh on each other.

Measured are the time of the whole, of the picture alone, of the words when they are new, kept in memory and kept on
disk, and what memory is held beyond the model's. Then the prompts are asked one by one, each as if it were all: a
thousand names find what their prompts find. Then some names are packed with 1, 10, 40 and as many as fit to a prompt,
and compared with each name asked by itself, by networks of three seeds: alone in their prompts they are scored class by
class, and beyond that the difference of their best scores tells what names cost each other.

The claim: outputs equal to 1e-4 of the largest those of prompts asked alone, and with one name a prompt those of names
asked one by one; the picture is seen once, so that the whole takes less time than its prompts by themselves; less than
4 GB beyond the model.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import torch
from torch import Tensor

from synoptic.detection.detector import Asked, Detector, class_scores
from synoptic.models.grounding_dino import GroundingDino, GroundingDinoConfig
from synoptic.models.linear import quicken
from synoptic.models.tokenizers import Tokenizer

GIGABYTES, TOLERANCE = 4.0, 1e-4
SHARED = (1, 10, 40, None)  # names of a prompt; None is as many as fit
SOME = 10  # names that are asked one by one
SEEDS = (0, 1, 2)  # of networks by which names are compared


def detector(vocabulary: Path, seed: int) -> Detector:
    """With random weights, whose boxes move and whose words matter."""
    torch.manual_seed(seed)
    words = Tokenizer.bert(vocabulary.read_text(encoding="utf-8").split("\n"), 256)
    model = GroundingDino(GroundingDinoConfig(), words).eval()
    for head in (model.select.box, *model.decoder.boxes):
        torch.nn.init.normal_(head[-1].weight, std=0.02)  # type: ignore[index]
    for fusion in model.fusions:
        torch.nn.init.ones_(fusion.image_scale)  # type: ignore[arg-type]
        torch.nn.init.ones_(fusion.text_scale)  # type: ignore[arg-type]
    for norm in (model.select.norm, model.decoder.norm):  # logits of one or so, which probabilities tell apart
        torch.nn.init.constant_(norm.weight, model.config.width**-0.5)
    quicken(model)
    return Detector(model, "random")


def names_of(vocabulary: Path, count: int) -> list[str]:
    """Different names of one or two whole words."""
    lines = vocabulary.read_text(encoding="utf-8").splitlines()
    words = [line for line in lines if line.isascii() and line.isalpha() and len(line) > 3]
    return [f"{words[3 * n]} {words[3 * n + 1]}" if n % 3 == 0 else words[3 * n] for n in range(count)]


def timed(step: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    answer = step()
    return answer, time.perf_counter() - start


@torch.no_grad()
def measure(finder: Detector, names: list[str]) -> dict[str, Any]:
    """Times and memory of all names, and by how much they differ from their prompts by themselves."""
    image = torch.rand(3, 480, 640)
    wanted = finder.vocabulary(names)
    asked = Asked(torch.zeros(len(names)), 300, None)
    words = [chunk.phrases for chunk in wanted.chunks]
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        _, words_new = timed(lambda: finder.words.learn(words))
        _, words_kept = timed(lambda: finder.words.learn(words))
        _, words_on_disk = timed(lambda: Detector(finder.model, "new").words.learn(words))
    pyramids, seen = timed(lambda: finder.see([image]))
    whole, ground = timed(lambda: finder.classes(pyramids, [wanted], [asked])[0])
    alone, single = timed(lambda: [_alone(finder, image, chunk) for chunk in wanted.chunks])
    scores = torch.cat([each for each, _ in alone], 1).flatten().topk(300).values
    held = common.peak(lambda: finder.classes(finder.see([image]), [wanted], [asked]))
    return {
        **{"names": len(names), "prompts": len(wanted.chunks), "see_s": seen, "ground_s": ground},
        **{"words_new_s": words_new, "words_kept_s": words_kept, "words_on_disk_s": words_on_disk},
        **{"prompts_alone_s": single, "bytes": held},
        "difference": float((scores - whole.scores).abs().max() / scores.abs().max()),
    }


def _alone(finder: Detector, image: Tensor, chunk: Any) -> tuple[Tensor, Tensor]:
    """Scores and boxes of one prompt, as if nothing else were asked."""
    found = finder.ground(finder.see([image]), [chunk.phrases])
    return class_scores(found.logits[0], chunk), found.boxes[0]


@torch.no_grad()
def shared(finders: list[Detector], names: list[str]) -> list[dict[str, float]]:
    """By how much the best scores of some names differ from those when each is asked by itself, where so many share a
    prompt."""
    seen = [finder.see([torch.rand(3, 480, 640)]) for finder in finders]
    alone = [_best(*each, names[:SOME], 1, SOME) for each in zip(finders, seen, strict=True)]
    found = []
    for together in SHARED:
        prompt = len(finders[0].vocabulary(names, together).chunks[0].classes)
        best = [_best(*each, names, together, SOME) for each in zip(finders, seen, strict=True)]
        apart = (torch.stack(best) - torch.stack(alone)).abs()
        of_seeds = [float(each) for each in apart.mean(1)]
        found.append({"names": prompt, "mean": float(apart.mean()), "largest": float(apart.max()), "means": of_seeds})
    return found


def _best(finder: Detector, pyramids: Any, names: list[str], together: int | None, count: int) -> Tensor:
    """The best scores of the first names, so many of which share a prompt."""
    best: list[Tensor] = []
    for chunk in finder.vocabulary(names, together).chunks:
        if len(best) >= count:
            break
        found = finder.ground(pyramids, [chunk.phrases])
        best += class_scores(found.logits[0], chunk).amax(0).unbind()
    return torch.stack(best[:count])


def failures(found: dict[str, Any]) -> list[str]:
    """What speaks against the claim."""
    wrong = []
    if found["difference"] > TOLERANCE:
        wrong.append(f"prompts differ from those asked alone by {found['difference']:.1e}")
    if found["shared"][0]["largest"] > TOLERANCE:
        wrong.append("a name a prompt differs from names asked one by one")
    if found["see_s"] + found["ground_s"] > found["prompts_alone_s"]:
        wrong.append("all prompts take longer than each by itself")
    if found["bytes"] > GIGABYTES * 1e9:
        wrong.append(f"{found['bytes'] / 1e9:.1f} GB are held beyond the model")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = Path(os.environ.get("SYNOPTIC_DATA", "."))
    parser.add_argument("--names", type=int, default=1203)
    parser.add_argument("--vocabulary", type=Path, default=data / "vocab" / "bert-base-uncased-vocab.txt")
    options = parser.parse_args()
    if not options.vocabulary.is_file():
        parser.error("give --vocabulary, the vocab.txt of bert-base-uncased, or set SYNOPTIC_DATA")
    torch.set_num_threads(2)
    names = names_of(options.vocabulary, options.names)
    finders = [detector(options.vocabulary, seed) for seed in SEEDS]
    found = {**measure(finders[0], names), "shared": shared(finders, names)}
    print(found)
    claim = "a thousand names find what their prompts find alone, and the picture is seen once"
    common.finish("thousand_names", found, claim, failures(found))


if __name__ == "__main__":
    main()

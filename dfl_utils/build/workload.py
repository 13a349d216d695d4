"""Calls of the models by kind: the pieces that the work of an exhibit is made of, and their sum.

A kind is that of the run store's shards (`captions`, `images`, `clip-similarity`, ...), so the counts can be held
against what a published run recorded. Work that two exhibits share is in the store once and is counted once.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dfl_utils.training.losses import LOSSES
from dfl_utils.world import profile

ROLES = ("captioner", "generator")
JUDGES = ("clip", "dino")
EMBEDDED = ("clip-text", "sbert")  # scores of captions by an encoder; the others ask no model
Parameters = Mapping[str, object]


@dataclass(frozen=True)
class Training:
    """What decides the cost of a step of the finetuning."""

    losses: tuple[str, ...] = LOSSES
    train: tuple[str, ...] = ROLES
    decoder: str = "vae"
    share: float = 1.0


@dataclass(frozen=True)
class Work:
    """Shards of one kind over the first images of a data set and the first candidates of each.

    Attributes:
        kind: of the shards.
        of: data set, models and settings: equal ones share shards.
        images, each: how many, and calls for each.
        model: whose cost a call has: a captioner or a generator; empty where the kind says it.
        steps: denoising steps of a drawing; 0: its generator's own number.
        size: pixels a side of what the generator draws or learns from, where it has a part in a call.
        training: of a step of the finetuning; its `images` are steps.
    """

    kind: str
    of: str
    images: int
    each: int = 1
    model: str = ""
    steps: int = 0
    size: int = 0
    training: Training | None = None


def calls(works: Iterable[Work]) -> dict[Work, int]:
    """How many calls the works are together, one entry for all that share shards (its largest work names it)."""
    same = defaultdict(list)
    for work in works:
        same[work.kind, work.of, work.model, work.steps, work.size, work.training].append(work)
    found = {}
    for group in same.values():
        reach, total = 0, 0  # all begin at the first image and the first candidate: a staircase
        for work in sorted(group, key=lambda one: -one.images):
            total += work.images * max(0, work.each - reach)
            reach = max(reach, work.each)
        if total:
            found[max(group, key=lambda one: one.images * one.each)] = total
    return found


def recorded(works: Iterable[Work]) -> int:
    """Calls that the stamp of a chapter holds: not those of latents, which only the making of trainings asks for."""
    return sum(count for work, count in calls(works).items() if work.kind != "latents")


def image_size(p: Parameters, captioner: str) -> int:
    """Pixels a side of what is drawn beside a captioner."""
    return profile.configured(p["PROFILE"]).pair(captioner=captioner).image_size


def drawn(
    of: str, images: int, each: int, p: Parameters, pair=("blip-large", "stable-diffusion"), judges=JUDGES
) -> list[Work]:
    """Drawings, and their cosines with the originals; captions of another captioner are another `of`."""
    size, generator = image_size(p, pair[0]), pair[1]
    steps = int(p["NUM_INFERENCE_STEPS"]) if generator == "stable-diffusion" else 0
    made, data = [Work("images", of, images, each, generator, steps, size)], of.split(",")[0]
    for judge in judges:
        made += [Work(f"{judge}-similarity", f"{of}, {generator}, {size} px", images, each)]
        made += [Work(f"{judge}-originals", data, images)]
    return made


def i2t2i(
    data: str,
    images: int,
    each: int,
    p: Parameters,
    how="p 0.9",
    pair=("blip-large", "stable-diffusion"),
    judges=JUDGES,
) -> list[Work]:
    """Captions of images, and what is drawn of them."""
    of = f"{data}, sampled by {pair[0]} at {how}"
    return [Work("captions", of, images, each, pair[0]), *drawn(of, images, each, p, pair, judges)]


def t2i2t(data: str, images: int, each: int, p: Parameters, reader="blip-large") -> list[Work]:
    """Drawings of references, and what is read in them."""
    of, size = f"{data}, references", image_size(p, reader)
    read = Work("readings", f"{of}, {size} px", images, each, reader)
    return [*drawn(of, images, each, p, (reader, "stable-diffusion")), read]


def scored(of: str, images: int, each: int = 1, encoders: Iterable[str] = EMBEDDED) -> list[Work]:
    """Scores of captions that ask an encoder; that of the references is not counted."""
    return [Work(f"quality-{name}", of, images, each) for name in encoders]

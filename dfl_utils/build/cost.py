"""What chapters would cost with other parameters: recorded calls, scaled, times seconds a call.

The published run recorded each chapter's calls by kind of work. They grow with the images it is done of, with
candidates, trainings, steps; `amount` is the whole rule. On the CPU a call takes the seconds that were recorded, or as
many more as this machine takes. On a GPU it takes what the published model sizes took on one card
(`data/gpu/benchmarks.csv`), on another by the ratio of published peaks. Not in it: loading data; on a GPU, scores.
"""

import argparse
import math
import tempfile
from collections import namedtuple
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from dfl_utils.build import chapter as chapters
from dfl_utils.build import publish, ranges
from dfl_utils.store import provenance
from dfl_utils.store.store import RunStore
from dfl_utils.world import data, profile

BENCHMARKS = provenance.ROOT / "data" / "gpu" / "benchmarks.csv"
ASKED = ("NUM_IMAGES", "NUM_COCO_IMAGES", "NUM_SAMPLED_IMAGES", "NUM_NOCAPS_IMAGES", "NUM_OTHER_IMAGES")
DRAWN = ("NUM_DRAWN", "NUM_COCO_DRAWN")
OF_DRAWINGS = (
    *("images", "clip-similarity", "dino-similarity", "efficientnet-similarity"),
    *("features", "readings", "labels"),
)
TRAINED = ("weights", "validation-losses")
# And all that begins with "step-".
FIXED = ("token-images", "anatomy", "way-gradients", "vocabulary-map", "judging-seconds")
# Kind of work -> the benchmark of a call of the published size; other kinds are scores on the CPU.
BENCHMARK_OF = {
    **dict.fromkeys(("captions", "likelihood", "drawing-likelihood"), "caption sampled, blip-large"),
    **dict.fromkeys(("readings", "descriptions"), "caption by beam search, blip-large"),
    **dict.fromkeys(
        ("images", "denoising", "drawing-denoising", "one-step-similarity"), "drawing, Stable Diffusion, 4 at a time"
    ),
    **dict.fromkeys(("clip-similarity", "clip-originals", "features", "quality-clip-text"), "embedding, clip"),
    **dict.fromkeys(("efficientnet-similarity", "efficientnet-originals"), "embedding, clip"),
    **dict.fromkeys(("dino-similarity", "dino-originals"), "embedding, dino"),
    **dict.fromkeys((*TRAINED, "anatomy", "way-gradients", "step-seconds"), "joint step, one generator pass"),
}
EACH = {"images": "NUM_INFERENCE_STEPS", "weights": "BATCH_SIZE"}  # what one call of these grows with
MEASURED_EACH = {"images": 50, "weights": 8}  # of those benchmarks: denoising steps, pairs
SHARE = dict.fromkeys(
    ("denoising", "drawing-denoising", "one-step-similarity"), 0.01
)  # a drawing has two passes of the U-Net a step, these one


# Peak TFLOP/s of dense products, in float16 on tensor cores and in float32 without; memory in GB.
Gpu = namedtuple("Gpu", "name float16 float32 memory source")
GPUS = {row[0]: Gpu(*row) for row in pd.read_csv(BENCHMARKS.with_name("cards.csv")).itertuples(index=False)}
MEASURED, PAPER = GPUS["H100"], GPUS["A10"]
# What one of the paper's epochs may be of, in COCO's training split: it does not say. Its batches are of eight.
EPOCHS = {"images": 113_287, "captions": 566_747}
FIVE_EPOCHS = {unit: round(5 * count / 8) for unit, count in EPOCHS.items()}  # steps


@dataclass(frozen=True)
class Cost:
    """What a chapter would cost: the exhibits that it makes, and by kind of work model calls and hours."""

    chapter: str
    exhibits: tuple[str, ...]
    calls: dict[str, float]
    hours: dict[str, float]

    @property
    def total(self) -> float:
        """Hours."""
        return sum(self.hours.values())


def amount(kind: str, parameters: Mapping[str, object]) -> float:
    """How many calls of a kind a chapter's parameters ask for, up to a factor that is the chapter's own."""
    trainings = parameters.get("NUM_SEEDS", 0) + 1  # and what was there before
    if kind in FIXED or kind.startswith("step-"):
        return 1.0
    if kind == "weights":
        return parameters["NUM_STEPS"] * parameters["NUM_SEEDS"]
    if kind == "validation-losses":
        return parameters["NUM_VAL_IMAGES"] * trainings
    if kind.startswith("census"):
        return parameters["NUM_CAPTIONS"]
    asked, drawn = (sum(parameters.get(name, 0) for name in names) for names in (ASKED, DRAWN))
    images = (drawn if kind in OF_DRAWINGS else 0) or asked or 1
    candidates = 1 if kind.endswith("-originals") else parameters.get("NUM_CANDIDATES", 1)
    return images * candidates * trainings * (parameters.get("NUM_TIMESTEPS", 1) if kind == "denoising" else 1)


def cost(name: str, parameters: Mapping[str, object], gpu: Gpu | None = None, slower: float = 1.0) -> Cost:
    """What a chapter of the published run would cost with such parameters, all of them given.

    On a GPU, or on the CPU, where a call takes so many times longer than in the published run.
    """
    ran = publish.stamp("mini")["chapters"][name]
    calls, hours = {}, {}
    for kind, (made, seconds) in ran["kinds"].items():
        more = amount(kind, parameters) / amount(kind, ran["parameters"])
        calls[kind] = made * more
        if gpu:
            hours[kind] = calls[kind] * _seconds(kind, parameters, gpu) / 3600
        else:
            each = parameters[EACH[kind]] / ran["parameters"][EACH[kind]] if kind in EACH else 1.0
            hours[kind] = slower * seconds * more * each / 3600
    return Cost(name, tuple(ran["exhibits"]), calls, hours)


def _seconds(kind: str, parameters: Mapping[str, object], gpu: Gpu) -> float:
    """Of one call on a card, of models of the published sizes."""
    if kind not in BENCHMARK_OF:
        return 0.0
    each = parameters[EACH[kind]] / MEASURED_EACH[kind] if kind in EACH else SHARE.get(kind, 1.0)
    half = kind in ("captions", "readings", "descriptions", "images") or kind.endswith(("likelihood", "denoising"))
    peaks = MEASURED.float16 / gpu.float16 if half else MEASURED.float32 / gpu.float32
    return benchmarks()[BENCHMARK_OF[kind]] * each * peaks


def benchmarks() -> dict[str, float]:
    """Benchmark -> seconds of a call on `MEASURED`."""
    return pd.read_csv(BENCHMARKS).set_index("name")["ours"].to_dict()


def slower_here() -> float:
    """How many times longer than in the published run calls take on this machine: some ten seconds of one game."""
    from dfl_utils.game.loops import Game

    models = profile.load("mini")
    data.ensure(models)
    examples = data.subset(data.load(models, "nocaps", "overall"), 16, seed=0)
    recorded = publish.stamp("mini")["chapters"]["finding_caption"]
    with tempfile.TemporaryDirectory() as folder:
        store = RunStore(folder)
        Game(models, store, num_inference_steps=50, progress=False).i2t2i(examples, 2, top_p=0.9, seed=0)
        here, there = 0.0, 0.0
        for kind in ("captions", "images"):
            calls, seconds = recorded["kinds"][kind]
            here += store.spent[kind].seconds
            there += store.spent[kind].calls * seconds / calls
    return here / there


def choose(name: str) -> Gpu:
    """A GPU by name, whatever its case; ValueError of an unknown one."""
    for gpu in GPUS.values():
        if gpu.name.lower().replace(" ", "") == name.lower().replace(" ", ""):
            return gpu
    raise ValueError(f"There is no GPU {name!r} in the table: choose one of {', '.join(GPUS)}.")


def costs(
    wanted: Sequence[str] = (),
    scale: str = "paper",
    gpu: Gpu | None = None,
    slower: float = 1.0,
    typed: Mapping[str, str] | None = None,
) -> list[Cost]:
    """One for each wanted chapter or exhibit, or for all, as if nothing else had been made before.

    `typed` are parameters over those of the scale, as text from a command line, of the chapters that have them.
    ValueError: a name that is no chapter or exhibit, a parameter that no chapter has.
    """
    ran, typed = publish.stamp("mini")["chapters"], typed or {}
    known = {exhibit: name for name, one in ran.items() for exhibit in one["exhibits"]} | {name: name for name in ran}
    if unknown := [name for name in wanted if name not in known]:
        raise ValueError(f"There is no exhibit or chapter {', '.join(unknown)}: choose some of {', '.join(known)}.")
    found, had = [], set()
    for name in dict.fromkeys([known[name] for name in wanted] or ran):
        source = chapters.find(name)
        own = {key: typed[key] for key in typed.keys() & chapters.parameters(source).keys()}
        values = chapters.at_scale(source, scale) | chapters.check(source, own, typed=True)
        ranges.check(name, values, machine=False)
        found.append(cost(name, chapters.effective(source, values), gpu, slower))
        had |= own.keys()
    if lost := typed.keys() - had:
        raise ValueError(f"None of these chapters has a parameter {min(lost)}.")
    return found


def estimate(name: str, parameters: Mapping[str, object]) -> str:
    """A line on how long a chapter will work with such parameters, all of them given."""
    world = profile.configured(str(parameters.get("PROFILE", "mini")))
    gpu = None if world.device == "cpu" else MEASURED
    try:
        hours = cost(name, parameters, gpu).total
    except (KeyError, ValueError):
        return f"{name}: how long it takes is not known, since the published run recorded no work of it"
    shown = f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.0f} minutes" if hours > 1 / 30 else "two minutes"
    where = f"a {gpu.name}" if gpu else "the published run's processor"
    return f"{name}: about {shown} of models' work on {where}, less what the run store and the published run hold"


def main(arguments: argparse.Namespace) -> None:
    """`dfl cost`: a line a chapter, and what stands behind the numbers."""
    if arguments.price is not None and not 0 <= arguments.price < math.inf:
        raise ValueError(f"--price is {arguments.price:g}: give that of an hour, at least 0.")
    named = arguments.gpu or (MEASURED.name if arguments.scale == "paper" else None)
    gpu = choose(named) if named else None
    if arguments.here and gpu:
        raise ValueError("--here measures this machine's processor: leave it out where a GPU is asked about.")
    slower = slower_here() if arguments.here else 1.0
    found = costs(arguments.exhibit, arguments.scale, gpu, slower, dict(arguments.p))
    for one in found:
        calls = f"{sum(one.calls.values()):>13,.0f} calls"
        print(f"{one.chapter:17} {calls}  {one.total:>9,.2f} hours  {' '.join(one.exhibits)}")
    total = sum(one.total for one in found)
    print(f"together {total:,.2f} hours; what several share is counted for each")
    if arguments.price is not None:
        print(f"at {arguments.price:g} an hour: {arguments.price * total:,.2f}")
    measured = f"measured on {MEASURED.name}, on others assumed by the ratio of the published peaks"
    print(f"Seconds a call are those {measured if gpu else f'of the published run, times {slower:.2f}'}.")

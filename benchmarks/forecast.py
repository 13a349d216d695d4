"""Seconds of a run as a calibration by a few steps predicts them, against what the run then takes.

The run: captions, drawings of 50 steps, embeddings of both, readings and a joint finetuning, through new stores. One
thread, seconds of this process on its processor; a calibration before the run and one after it, and their mean.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable

import torch

from dfl_utils.build import exhibit_work
from dfl_utils.build.calibration import CAPTIONER, Calibration, Meter, joint
from dfl_utils.build.unit_flops import UnitFlops
from dfl_utils.build.workload import Work, i2t2i
from dfl_utils.store import provenance
from dfl_utils.store.store import RunStore
from dfl_utils.training.finetune import Recipe
from dfl_utils.world import data, profile

WITHIN = 0.25  # target: of the truth
TRAIN = 64  # pairs, whose latents are made beforehand in the calibration and in the run alike


def parts(images: int, each: int, inference_steps: int, steps: int) -> dict[str, list[Work]]:
    """The run's work by what is measured apart."""
    p = {"PROFILE": "mini", "NUM_INFERENCE_STEPS": inference_steps}
    works = i2t2i("nocaps", images, each, p)
    of = {kind: [work for work in works if work.kind.startswith(kind)] for kind in ("captions", "images")}
    looks = [work for work in works if work.kind.startswith(("clip", "dino"))]
    read = [Work("descriptions", "nocaps", images, model=CAPTIONER)]
    return {
        "captions": of["captions"],
        "drawings": of["images"] + looks,
        "descriptions": read,
        "training": [joint(steps)],
    }


def play(meter: Meter, examples, each: int, inference_steps: int, steps: int) -> dict[str, float]:
    """Seconds of the real run, with models that are loaded and warm as the calibration's."""
    spent = {}

    def timed(name: str, work: Callable[[], object]) -> object:
        began = time.process_time()
        found = work()
        spent[name] = time.process_time() - began
        return found

    game = meter.game
    before, game.generator.num_inference_steps = game.store, inference_steps
    with tempfile.TemporaryDirectory() as folder:
        game.store = RunStore(folder)
        captions = timed("captions", lambda: game.sample_captions(examples, each))
        timed("drawings", lambda: game.reconstruct(examples, captions))
        timed("descriptions", lambda: game.describe(examples))
        recipe = Recipe(steps=steps, decoder="tiny", seed=1)
        timed("training", lambda: meter.finetuner.run([recipe]))
    game.store = before
    return spent


def measure(images: int = 32, each: int = 4, inference_steps: int = 50, steps: int = 20, rounds: int = 3) -> dict:
    """Predicted and true seconds by part, with the calibration's FLOP/s."""
    torch.set_num_threads(1)
    world = profile.load("mini", num_inference_steps=inference_steps)
    data.ensure(world)
    examples = data.subset(data.load(world, "nocaps", "overall"), images, seed=0)
    own = data.subset(data.load(world, "nocaps", "overall"), 16, seed=1)  # not the run's
    train = data.subset(data.load(world, "coco", "train"), TRAIN, seed=0)
    meter = Meter(world, own, train)
    before = meter.measure(rounds)
    truth = play(meter, examples, each, inference_steps, steps)
    after = meter.measure(rounds)
    works = parts(images, each, inference_steps, steps)
    predicted = {
        name: sum(sum(one.seconds(part, meter.units).values()) for one in (before, after)) / 2
        for name, part in works.items()
    }
    shares = {kind: round((share + after.utilisation[kind]) / 2, 3) for kind, share in before.utilisation.items()}
    peak = (before.peak + after.peak) / 2
    found = {"predicted": predicted, "truth": truth, "utilisation": shares, "peak": peak}
    return found | {"calibration": after, "units": meter.units}


def recorded(calibration: Calibration, units: UnitFlops) -> dict[str, tuple[float, float]]:
    """Chapter -> seconds predicted here of its published run, and those that the run recorded.

    Recorded seconds are by the clock on the wall, of two processes at a time beside whatever else the machine did, and
    hold scores, intervals and originals that no forecast counts.
    """
    stamp = provenance.ROOT / "results" / "mini" / "stamp.json"
    runs = json.loads(stamp.read_text(encoding="utf-8"))["chapters"]
    found = {}
    for name in (name for name in exhibit_work.CHAPTERS if name in runs):
        exhibits = exhibit_work.exhibits(name, **runs[name]["run"]["parameters"])
        works = [work for part in exhibits.values() for work in part]
        found[name] = sum(calibration.seconds(works, units).values()), runs[name]["cost"]["seconds"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--inference-steps", type=int, default=50)
    parser.add_argument("--steps", type=int, default=20, help="of the finetuning")
    parser.add_argument("--rounds", type=int, default=3, help="of each calibration")
    parser.add_argument("--recorded", action="store_true", help="also the chapters' published runs, beside their stamp")
    options = parser.parse_args()
    found = measure(options.images, options.candidates, options.inference_steps, options.steps, options.rounds)
    predicted, truth = found["predicted"], found["truth"]
    for name in (*truth, "together"):
        pair = [sum(one.values()) if name == "together" else one[name] for one in (predicted, truth)]
        print(f"{name:14}{pair[0]:9.1f} s predicted{pair[1]:9.1f} s taken{pair[0] / pair[1]:7.2f}")
    for name, pair in recorded(found["calibration"], found["units"]).items() if options.recorded else ():
        print(f"{name:17}{pair[0]:9.0f} s predicted{pair[1]:9.0f} s recorded{pair[0] / pair[1]:7.2f}")
    print(f"share of a matrix product's {found['peak'] / 1e9:.0f} GFLOP/s:", found["utilisation"])


if __name__ == "__main__":
    main()

"""Seconds of two chapters at other sizes as `dfl cost` predicts them, against what they then take.

The chapters run in an empty run store; the seconds compared are those of the work that they record. How much slower
this machine is than that of the published run is measured before, as `dfl cost --here` does.
"""

import argparse
import json
import tempfile
from pathlib import Path

from dfl_utils.build import chapter as chapters
from dfl_utils.build import cost, execution
from dfl_utils.build.execution import environment

WITHIN = 0.25  # target: of the truth
SIZES = {
    "finding_caption": {"NUM_IMAGES": 32, "NUM_COCO_IMAGES": 16, "NUM_CANDIDATES": 5, "NUM_INFERENCE_STEPS": 25},
    "ablations": {
        **{"NUM_STEPS": 40, "NUM_SEEDS": 1, "NUM_IMAGES": 48, "NUM_DRAWN": 32, "NUM_INFERENCE_STEPS": 25},
        **{"PLANTED_STEPS": 20, "COLLAPSE_STEPS": "4 12 120", "NUM_VAL_IMAGES": 32},
    },
}


def measure(quick: bool = False) -> dict[str, tuple[float, float]]:
    """Chapter -> seconds predicted and taken."""
    slower, found = cost.slower_here(), {}
    for name, sizes in list(SIZES.items())[: 1 if quick else None]:
        parameters = chapters.effective(chapters.find(name), sizes)
        predicted = 3600 * cost.cost(name, parameters, slower=slower).total
        with tempfile.TemporaryDirectory() as folder, environment(DFL_STORE=folder, DFL_PUBLISHED=""):
            place = Path(folder)
            execution.run_chapter(name, sizes, target=place / "copy.ipynb", results=place / "results")
            record = json.loads((place / "results" / f"{name}.json").read_text(encoding="utf-8"))
        found[name] = predicted, record["cost"]["seconds"]
    return found


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for name, (predicted, taken) in measure().items():
        print(f"{name:17}{predicted:8.1f} s predicted{taken:8.1f} s taken{predicted / taken:7.2f}")


if __name__ == "__main__":
    main()

"""Published peaks of some GPUs, for a forecast of what a run would cost on one.

TFLOP/s of dense products, boost clock: float16 on tensor cores with float32 accumulation, float32 without tensor cores.
Makers print twice as much where half of a matrix is known to be zero, which nothing here is. The numbers are NVIDIA's,
from the data sheets and white papers named; the pages themselves could not be opened here.
"""

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Gpu:
    """A card.

    Attributes:
        name: as in `GPUS`.
        float16, float32: peak TFLOP/s.
        memory: in GB.
        source: where its maker says so.
    """

    name: str
    float16: float
    float32: float
    memory: float | None = None
    source: str = "given by the reader"

    def peak(self, dtype: str) -> float:
        """FLOP/s in `float16` or `float32`."""
        return 1e12 * {"float16": self.float16, "float32": self.float32}[dtype]


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("A10", 125.0, 31.2, 24, "NVIDIA A10 data sheet, 2021"),  # the paper's
        Gpu("A100", 312.0, 19.5, 80, "NVIDIA A100 80GB data sheet, 2021"),
        Gpu("H100", 989.4, 66.9, 80, "NVIDIA H100 (SXM5) data sheet, 2023, halved from its numbers with sparsity"),
        Gpu("L4", 121.0, 30.3, 24, "NVIDIA L4 data sheet, 2023, halved from its numbers with sparsity"),
        Gpu("T4", 65.0, 8.1, 16, "NVIDIA T4 data sheet, 2019"),
        Gpu("RTX 4090", 165.2, 82.6, 24, "NVIDIA Ada GPU architecture white paper, 2023, Appendix A"),
    )
}
MEASURED, MEASURED_DTYPE = GPUS["H100"], "float16"  # the card of `use`, and what its captions and drawings were made in
BENCHMARKS = Path(__file__).resolve().parents[2] / "data" / "gpu" / "benchmarks.csv"
# Kind of work -> the benchmark that says what share of the peak it reached, at the published sizes.
BENCHMARK_OF = {
    "captions": "caption sampled, blip-large",
    "readings": "caption by beam search, blip-large",
    "images": "drawing, Stable Diffusion, 4 at a time",
    "clip": "embedding, clip",
    "dino": "embedding, dino",
    "training": "joint step, one generator pass",
}
PAPER = GPUS["A10"]  # one of 24 GB, five epochs in batches of eight (Section 5)


@cache
def use() -> dict[str, float]:
    """Kind of work -> share of its published peak that `MEASURED` reached, measured by `benchmarks/gpu.py`."""
    with BENCHMARKS.open(encoding="utf-8", newline="") as file:
        ratios = {row["name"]: float(row["ratio"]) for row in csv.DictReader(file)}
    return {kind: ratios[name] for kind, name in BENCHMARK_OF.items()}


def choose(name: str | None = None, tflops: float | None = None) -> Gpu:
    """A known GPU by name, whatever its case, or one that is named by its peak in both types.

    Raises:
        ValueError: an unknown name, both or neither, a peak that is none.
    """
    if (name is None) == (tflops is None):
        raise ValueError("Name one GPU, by --gpu or by the peak that it is reckoned with, --tflops.")
    if tflops is not None:
        if not 0 < tflops < float("inf"):
            raise ValueError(f"--tflops is {tflops:g}: give the peak in TFLOP/s, above 0.")
        return Gpu(f"{tflops:g} TFLOP/s", tflops, tflops)
    known = {gpu.lower().replace(" ", ""): gpu for gpu in GPUS}
    key = name.lower().replace(" ", "")
    if key not in known:
        raise ValueError(f"There is no GPU {name!r} in the table: choose one of {', '.join(GPUS)}, or give --tflops.")
    return GPUS[known[key]]

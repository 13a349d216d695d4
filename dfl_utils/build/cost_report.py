"""What `dfl cost` prints: the table of a forecast, and all that it assumes."""

import argparse

from dfl_utils.build import forecast, gpus
from dfl_utils.build.forecast import Forecast
from dfl_utils.build.gpus import MEASURED, PAPER, Gpu
from dfl_utils.build.unit_flops import BATCH_SIZE
from dfl_utils.build.workload import Training, Work
from dfl_utils.store.store import RunStore
from dfl_utils.world import profile

EPOCHS, PAIRS = 5, 113_000  # the paper's training, one A10 of 24 GB, batches of eight (Section 5)


def main(arguments: argparse.Namespace) -> None:
    """Print the forecast.

    Raises:
        ValueError: an unknown exhibit, GPU, profile or scale; a utilisation or a price that is none.
    """
    low, high = arguments.utilisation or forecast.UTILISATION
    forecast.check((low, high), arguments.price)
    named = arguments.gpu or (None if arguments.tflops is not None else PAPER.name)
    gpu = gpus.choose(named, arguments.tflops)
    world = profile.configured(arguments.profile)
    made = Forecast(world, RunStore(), arguments.scale or ("paper" if world.name == "paper" else "full"))
    rows = [*made.rows(arguments.exhibit), made.total(arguments.exhibit)]
    lines = forecast.table(rows, gpu, (low, high), arguments.price)
    print("\n".join(columns(lines)))
    print("\n" + "\n".join(assumptions(made, gpu, (low, high), arguments.price)))


def columns(lines: list[dict[str, str]]) -> list[str]:
    """Lines of equal keys as text in columns: names to the left, numbers to the right."""
    keys = list(lines[0])
    widths = [max(len(key), *(len(line[key]) for line in lines)) for key in keys]

    def one(texts: list[str]) -> str:
        cells = zip(texts, widths, strict=True)
        return "  ".join(text.ljust(w) if k < 2 else text.rjust(w) for k, (text, w) in enumerate(cells)).rstrip()

    return [one(keys), *(one(list(line.values())) for line in lines)]


def paper_hours(made: Forecast, utilisation: tuple[float, float], captioner: str = "blip-base") -> tuple[float, float]:
    """Hours of the paper's own training on its A10: five epochs of pairs, all four losses, in float32."""
    size = made.world.pair(captioner=captioner).image_size
    step = Work("finetuning", "", 1, model=captioner, size=size, training=Training())
    at_peak = EPOCHS * PAIRS / BATCH_SIZE * made.flops(step) / PAPER.peak("float32") / 3600
    return at_peak / utilisation[1], at_peak / utilisation[0]


def assumptions(made: Forecast, gpu: Gpu, utilisation: tuple[float, float], price: float | None) -> list[str]:
    """Sentences that belong to every forecast."""
    low, high = utilisation
    cards = [f"{card.name}: {_peak(card)}" for card in dict.fromkeys((gpu, PAPER))]
    hours = forecast.span(*paper_hours(made, utilisation))
    money = "Money: give --price, of an hour; this book knows no prices."
    if price is not None:
        money = f"Money: hours x {price:g}, the price that was given."
    return [
        f"Exhibits are priced as if alone; what two of them share is made once, as it is in the last line. Parameters: "
        f"params/{made.scale}.yml over the chapters' own.",
        f"Hours: FLOPs counted on shapes, over the published peak, at an assumed {low:g} to {high:g} of it "
        "(--utilisation); captions and drawings in the profile's type, judges and training in float32.",
        *cards,
        f"Measured use: the share of the {MEASURED.name}'s peak that each kind of work reached at the published sizes, "
        "words said one by one (benchmarks/gpu.py): "
        f"{', '.join(f'{kind} {share:.2f}' for kind, share in gpus.use().items())}.",
        f"The paper's training of BLIP ViT-B and Stable Diffusion, {EPOCHS} epochs of {PAIRS:,} pairs in batches of "
        f"{BATCH_SIZE} on one A10, would by this take {hours} hours; the paper names no time.",
        f"Disk: what the run store keeps, drawings uncompressed; checkpoints and data are "
        f"{made.fixed_disk() / 1e9:.0f} GB more, as far as their sizes are known.",
        money,
        "Not in it: scores on the CPU and data loading; in the assumed range, that captions are said word by word.",
    ]


def _peak(gpu: Gpu) -> str:
    memory = f", {gpu.memory:g} GB" if gpu.memory else ""
    return f"{gpu.float16:g} TFLOP/s in float16, {gpu.float32:g} in float32{memory} ({gpu.source})."

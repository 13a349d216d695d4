"""What the book's exhibits would cost: FLOPs of all calls, and from these GPU-hours, disk and money.

Hours are FLOPs over a GPU's published peak times a utilisation. That is an assumption with a range, but for one card,
on which it was measured for each kind of work. Scores that ask no model (CIDEr, WMD, SPICE, intervals) run on the CPU
and are not in it, nor is data loading.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from dfl_utils.build import catalogue, exhibit_work, gpus, workload
from dfl_utils.build.gpus import MEASURED, PAPER, Gpu
from dfl_utils.build.unit_flops import FREE, UnitFlops, judge_of
from dfl_utils.build.workload import Work
from dfl_utils.build.world_shapes import Shapes
from dfl_utils.store import provenance
from dfl_utils.store.store import Kind, RunStore
from dfl_utils.world.profile import Profile

UTILISATION = (0.2, 0.5)  # of the peak: an assumption, no measurement of ours
TRAINING = ("finetuning", "anatomy", "validation-losses", "latents")
SAID_OR_DRAWN = ("captions", "descriptions", "readings", "likelihood", "images")
UNIT_FLOPS = Kind("unit-flops")
FEATURES, EMBEDDING, TEXT, NUMBER = 4 * (2048 + 1008), 4 * 768, 100, 8  # bytes; of a text about


@dataclass(frozen=True)
class Row:
    """What one exhibit costs.

    Attributes:
        chapter, exhibit: names.
        calls: of models.
        flops: by the type that they are computed in.
        disk: bytes that the run store keeps of it.
        kinds: the same FLOPs by kind of work, of `gpus.BENCHMARK_OF`, and type; empty for models of other types than
            were measured on a card.
    """

    chapter: str
    exhibit: str
    calls: int
    flops: dict[str, float]
    disk: int
    kinds: dict[tuple[str, str], float] = field(default_factory=dict)

    def hours(self, gpu: Gpu, utilisation: tuple[float, float] = UTILISATION) -> tuple[float, float]:
        """GPU-hours, fewest and most."""
        check(utilisation)
        at_peak = sum(flops / gpu.peak(dtype) for dtype, flops in self.flops.items()) / 3600
        return at_peak / utilisation[1], at_peak / utilisation[0]

    def hours_measured(self) -> float:
        """Hours of `gpus.MEASURED`, at the share of its peak that each kind of work reached there.

        Where less was in a batch than when that was measured, a card takes longer.
        """
        shares = gpus.use()
        return sum(flops / MEASURED.peak(dtype) / shares[kind] for (kind, dtype), flops in self.kinds.items()) / 3600


class Forecast:
    """The cost of exhibits in one world.

    Args:
        world: its profile; no GPU is needed to look at it.
        store: keeps the counts, which take a minute the first time.
        scale: of `params/`; the chapters' defaults if None.
    """

    def __init__(self, world: Profile, store: RunStore, scale: str | None = "paper"):
        self.world, self.store, self.scale = world, store, scale
        self.shapes = Shapes(world)
        self.units = UnitFlops(self.shapes)

    def rows(self, wanted: Sequence[str] = ()) -> list[Row]:
        """One row an exhibit, each as if nothing else had been made before.

        Args:
            wanted: names of chapters and exhibits; all if empty.

        Raises:
            ValueError: a name that is neither.
        """
        return [self._row(name, exhibit, works) for name, exhibit, works in self.chosen(wanted)]

    def total(self, wanted: Sequence[str] = ()) -> Row:
        """All of these together: what two of them share is made once."""
        return self._row("", "together", [work for *_, works in self.chosen(wanted) for work in works])

    def chosen(self, wanted: Sequence[str] = ()) -> list[tuple[str, str, list[Work]]]:
        """Chapter, exhibit and its work, for the names that are wanted."""
        known = dict.fromkeys(name for chapter, exhibit, _ in self.everything for name in (chapter, exhibit))
        asked = ["".join(name.lower().split()) for name in wanted]
        plain = {"".join(name.lower().split()): name for name in known}
        if unknown := [name for name, key in zip(wanted, asked, strict=True) if key not in plain]:
            raise ValueError(f"There is no exhibit or chapter {', '.join(unknown)}: choose some of {', '.join(known)}.")
        names = {plain[key] for key in asked} or set(known)
        return [row for row in self.everything if names & set(row[:2])]

    @cached_property
    def everything(self) -> list[tuple[str, str, list[Work]]]:
        """Chapter, exhibit and its work, of the whole book."""
        return [
            (name, exhibit, works)
            for name in exhibit_work.CHAPTERS
            for exhibit, works in exhibit_work.exhibits(name, self.scale, PROFILE=self.world.name).items()
        ]

    def fixed_disk(self) -> int:
        """Bytes of checkpoints and data as they are fetched, as far as they are known; see `catalogue`."""
        files = sum(max(file.bytes or 0, file.unpacked or 0) for file in catalogue.files(self.world))
        return files + sum(model.bytes for model in catalogue.models(self.world))

    def flops(self, work: Work) -> float:
        """FLOPs of one call of a work, from the store or counted now."""
        key = self._key | {"call": repr(_unit(work))}

        def count():
            return {"flops": np.array([self.units.of(work)])}

        return float(self.store.get(UNIT_FLOPS, key, count)["flops"][0])

    @cached_property
    def _key(self) -> dict:
        world = self.world
        named = {
            "captioners": {name: _identity(model) for name, (model, _) in world.captioners.items()},
            "generators": {name: [_identity(model), *rest] for name, (model, *rest) in world.generators.items()},
            "judges": [_identity(world.clip), _identity(world.dino), world.dino_size],
            "tiny decoder": world.tiny_decoder and _identity(world.tiny_decoder),
        }
        return {"models": named, "packages": provenance.model_packages()}

    def _row(self, name: str, exhibit: str, works: list[Work]) -> Row:
        calls = workload.calls(works)
        flops, kinds = dict.fromkeys(("float16", "float32"), 0.0), defaultdict(float)
        for work, count in calls.items():
            dtype = self.world.dtype if work.kind in SAID_OR_DRAWN else "float32"
            spent = count * self.flops(work)
            flops[dtype] += spent
            kinds[kind_of(work.kind), dtype] += spent
        disk = sum(self._bytes(work, count) for work, count in calls.items())
        kinds = dict(kinds) if self.world.dtype == gpus.MEASURED_DTYPE else {}
        return Row(name, exhibit, sum(calls.values()), flops, disk, kinds)

    def _bytes(self, work: Work, count: int) -> int:
        """What the run store keeps of a work."""
        if work.kind == "finetuning":
            return self._checkpoints(work)
        if work.kind == "images":
            return 3 * work.size**2 * count  # uncompressed
        if work.kind == "latents":
            return 4 * 4 * (work.size // 8) ** 2 * count
        if work.kind in ("features", "original-features"):
            return FEATURES * count
        if work.kind.endswith("-originals"):
            return EMBEDDING * count
        return (TEXT if work.kind in SAID_OR_DRAWN else NUMBER) * count

    def _checkpoints(self, work: Work) -> int:
        """Folders in the Hugging Face layout, of each model that a training moves, in float32."""
        models = [self.shapes.captioner(work.model).model] if "captioner" in work.training.train else []
        if "generator" in work.training.train:
            models += [self.shapes.part("stable-diffusion", name) for name in ("unet", "vae", "text_encoder")]
        return 4 * sum(parameter.numel() for model in models for parameter in model.parameters())


def check(utilisation: tuple[float, float], price: float | None = None) -> None:
    """ValueError where these are no lower and upper share of a peak, or the price of an hour is none."""
    low, high = utilisation
    if not 0 < low <= high <= 1:
        raise ValueError(f"The utilisation is {low:g} to {high:g}: give two shares of the peak, the lower one first.")
    if price is not None and not 0 <= price < float("inf"):
        raise ValueError(f"The price is {price:g} an hour: give a number of 0 or more.")


def table(
    rows: Sequence[Row], gpu: Gpu, utilisation: tuple[float, float], price: float | None = None
) -> list[dict[str, str]]:
    """Rows in words: PFLOP, hours on a GPU and on the paper's, disk, and money where a price an hour is given."""
    check(utilisation, price)
    shown = []
    for row in rows:
        line = {"chapter": row.chapter, "exhibit": row.exhibit, "calls": f"{row.calls:,}"}
        line["PFLOP"] = f"{sum(row.flops.values()) / 1e15:,.0f}"
        for card in dict.fromkeys((gpu, PAPER)):
            line[f"hours, {card.name}"] = span(*row.hours(card, utilisation))
            if card == MEASURED and row.kinds:
                line[f"hours, {card.name}, measured use"] = number(row.hours_measured())
        line["disk, GB"] = f"{row.disk / 1e9:,.1f}"
        if price is not None:
            line["money"] = span(*(price * hours for hours in row.hours(gpu, utilisation)))
        shown.append(line)
    return shown


def kind_of(kind: str) -> str:
    """Which of the measured kinds of work speaks for a kind of shard."""
    if kind in TRAINING or kind in FREE:
        return "training"
    if kind in SAID_OR_DRAWN:
        return {"likelihood": "captions", "descriptions": "readings"}.get(kind, kind)
    return "dino" if judge_of(kind) == "dino" else "clip"  # Inception and the text encoders, too, which are little


def span(low: float, high: float) -> str:
    """Two numbers, in as many digits as they are worth."""
    return " to ".join(number(one, high) for one in (low, high))


def number(value: float, largest: float | None = None) -> str:
    """A number in as many digits as it, or the largest beside it, is worth."""
    size = value if largest is None else largest
    return f"{value:,.{0 if size >= 20 else 1 if size >= 0.2 else 3}f}"


def _identity(model: str) -> str:
    """A model in a key: the content of its folder, or its id on the hub."""
    return provenance.checkpoint_hash(Path(model)) if Path(model).is_dir() else model


def _unit(work: Work) -> Work:
    """What decides the cost of a call: neither its data set nor how many there are."""
    each = work.each if work.kind in ("captions", "likelihood") else 1
    return Work(work.kind, "", 1, each, work.model, work.steps, work.size, work.training)

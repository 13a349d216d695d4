"""The recipe of a finetuning run: all that decides it beside its models and pairs."""

from dataclasses import asdict, dataclass, field

from dfl_utils.connection import CONNECTIONS
from dfl_utils.losses import LOSSES, Economy
from dfl_utils.micro_batches import cut

ROLES = ("captioner", "generator")


@dataclass(frozen=True)
class Recipe:
    """All that decides a run beside its models and pairs.

    Attributes:
        losses: some of `losses.LOSSES`, summed with equal weights (Appendix H).
        train: which of `captioner` and `generator` move.
        steps: optimiser steps.
        lr: of AdamW, constant (paper: 1e-4).
        batch_size: pairs a step (paper: 8).
        micro_batches: parts in which a step's batch is worked on, one after the other or by several ranks at a time;
            their number changes a step's last bits, who works on them does not.
        seed: order of the pairs and all noise.
        connect: see `connection.distributions`.
        decoder: `vae`, or `tiny` for the profile's `AutoencoderTiny`.
        economy: see `losses.Economy`.
    """

    losses: tuple[str, ...] = LOSSES
    train: tuple[str, ...] = ROLES
    steps: int = 70_000
    lr: float = 1e-4
    batch_size: int = 8
    seed: int = 0
    connect: str = "softmax"
    decoder: str = "vae"
    economy: Economy = field(default_factory=Economy)
    micro_batches: int = 1

    def __post_init__(self):
        if set(self.losses) - set(LOSSES) or not self.losses:
            raise ValueError(f"losses must name some of {', '.join(LOSSES)}, not {', '.join(self.losses) or 'none'}.")
        if set(self.train) - set(ROLES) or not self.train:
            raise ValueError(f"train must name captioner, generator or both, not {', '.join(self.train) or 'none'}.")
        if self.steps < 1 or self.batch_size < 1 or not 0 < self.lr < 1:
            raise ValueError(
                f"steps {self.steps}, batch_size {self.batch_size}, lr {self.lr}: steps and batch_size start at 1, lr "
                "lies between 0 and 1."
            )
        if not 1 <= self.micro_batches <= self.batch_size:
            raise ValueError(
                f"micro_batches is {self.micro_batches}: cut a batch of {self.batch_size} pairs in 1 to "
                f"{self.batch_size} parts."
            )
        parts = [len(range(self.batch_size)[rows]) for rows in cut(self.batch_size, self.micro_batches)]
        if (told := sum(map(self.economy.rows, parts))) != (whole := self.economy.rows(self.batch_size)):
            raise ValueError(
                f"A share of {self.economy.share:g} is {whole} of {self.batch_size} pairs, and in {self.micro_batches} "
                f"micro_batches it would be {told}: take fewer of these, or another share."
            )
        if self.decoder not in ("vae", "tiny"):
            raise ValueError(f"decoder is {self.decoder!r}: choose vae or tiny.")
        if self.connect not in CONNECTIONS:
            raise ValueError(f"connect is {self.connect!r}: choose one of {', '.join(CONNECTIONS)}.")

    def key(self) -> dict:
        """What it adds to the key of a run; whole batches go without saying."""
        found = asdict(self) | {"losses": sorted(self.losses), "train": sorted(self.train)}
        if self.micro_batches == 1:
            del found["micro_batches"]
        return found

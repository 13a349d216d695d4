"""Several processes on the same work: claims on files, and the place of each among those that were started together.

Two ways to share work. Shards and runs are shared by the claims of the run store: every rank starts at its own part and
then makes up for the others, so none waits, and none is missed. One training is shared step by step: there every rank
is needed, and a lost one ends the others with one sentence.

A claim is a lock file with its holder's process id, host and a heartbeat. The claim of a killed process is taken over
at once on its own machine, and after `STALE_SECONDS` without a heartbeat on another.
"""

import contextlib
import logging
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from filelock import SoftFileLease, Timeout

if TYPE_CHECKING:  # neither torch nor accelerate is loaded by those who only ask for their place
    from accelerate import Accelerator

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
STALE_SECONDS = 60.0  # the heartbeat comes every third of it
TIMEOUT_SECONDS = 1800  # half an hour: longer than any shard takes that one rank still makes while others wait

Work = TypeVar("Work")

_log = logging.getLogger(__name__)


class RankLost(RuntimeError):
    """A rank of a joint training died, or did not answer in time."""


@dataclass(frozen=True)
class Place:
    """Where a process stands among those that were started together."""

    rank: int = 0  # among all, from 0
    world_size: int = 1
    local_rank: int = 0  # among those of its machine

    @property
    def folder(self) -> str:
        """Part of a path that no other rank writes below; rank 0 writes where a single process does."""
        return f"rank{self.rank}" if self.rank else "."


def place() -> Place:
    """The place of this process, by the variables that torchrun and accelerate set; ValueError of impossible ones."""
    rank, world_size, local_rank = (os.environ.get(name) for name in VARIABLES)
    if rank is None or world_size is None:
        return Place()
    try:
        found = Place(int(rank), int(world_size), int(local_rank or 0))
    except ValueError:
        found = Place(-1)
    if not 0 <= found.rank < found.world_size or found.local_rank < 0:
        raise ValueError(
            f"RANK is {rank!r}, WORLD_SIZE {world_size!r} and LOCAL_RANK {local_rank!r}: give whole numbers with 0 <= "
            "RANK < WORLD_SIZE, as torchrun does, or unset all three."
        )
    return found


def own_first(work: Sequence[Work], group: int = 1) -> list[Work]:
    """Work in the order in which this rank does it: its own stripe first, then the stripes of the ranks after it.

    `group` neighbours belong to one rank, because they need the same shard.
    """
    here = place()
    groups = [work[start : start + group] for start in range(0, len(work), group)]
    stripes = (groups[(here.rank + k) % here.world_size :: here.world_size] for k in range(here.world_size))
    return [one for stripe in stripes for part in stripe for one in part]


def use_device(device: str) -> None:
    """Make `cuda` mean this rank's own GPU; a device with a number, and the CPU, stay what they are.

    The name of the device stays `cuda`, because it is part of the keys under which ranks find each other's shards.
    """
    if device == "cuda" and place().world_size > 1:
        import torch

        if torch.cuda.is_available():
            torch.cuda.set_device(place().local_rank % torch.cuda.device_count())


def accelerator(cpu: bool, together: bool) -> "Accelerator":
    """An accelerator of this process alone, on the CPU or not; `together`, of all ranks, which must all call this.

    Raises: as `join`.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState, PartialState

    if together:
        join(cpu)
    known = PartialState._shared_state  # accelerate keeps the first world that it saw for the life of the process
    if known and PartialState().num_processes != (place().world_size if together else 1):
        AcceleratorState._reset_state(reset_partial_state=True)
    # Nothing is synchronised but what `gather` is asked for: a rank may have no micro-batch to pass forward. torch has
    # a new name for it, which accelerate does not know yet.
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
    handlers = [DistributedDataParallelKwargs(broadcast_buffers=False)]
    with contextlib.nullcontext() if together else _hidden():
        return Accelerator(cpu=cpu, kwargs_handlers=handlers)


def gathered(value: int) -> list[int]:
    """What every rank says, in their order; all that have joined must call this. RankLost: another is gone."""
    from torch import distributed

    said = [0] * place().world_size
    with answering("the ranks talked"):
        distributed.all_gather_object(said, value)
    return said


@contextlib.contextmanager
def answering(what: str) -> Iterator[None]:
    """Turn the error of a collective operation into one sentence."""
    try:
        yield
    except RuntimeError as error:  # torch's DistError, and gloo's bare one
        here, first = place(), str(error).strip().splitlines()[0][:120]
        raise RankLost(
            f"Rank {here.rank} of {here.world_size} lost another while {what} ({first}): start all ranks again, "
            "as many as you like, and they go on from the last state."
        ) from error


def timeout() -> float:
    """Seconds that a rank waits for the others, `DFL_RANK_TIMEOUT`; ValueError where that is no positive number."""
    text = os.environ.get("DFL_RANK_TIMEOUT") or str(TIMEOUT_SECONDS)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 10**7:
        raise ValueError(f"DFL_RANK_TIMEOUT is {text!r}: give seconds, more than 0.")
    return seconds


def join(cpu: bool) -> None:
    """Join all ranks until the process ends, by gloo on CPUs and nccl on GPUs.

    RankLost: not all came in `DFL_RANK_TIMEOUT` seconds.
    """
    import atexit

    from torch import distributed

    if distributed.is_initialized():
        return
    limit = timedelta(seconds=timeout())
    use_device("cpu" if cpu else "cuda")
    with answering("all met"):
        store, rank, world_size = next(distributed.rendezvous("env://", timeout=limit))
        # Chapters of one build meet one after the other at the same address: none may find what another left there.
        store = distributed.PrefixStore(f"dfl-{os.environ.get('DFL_CHAPTER', '')}", store)
        options = {"store": store, "rank": rank, "world_size": world_size, "timeout": limit}
        distributed.init_process_group("gloo" if cpu else "nccl", **options)
    atexit.register(lambda: distributed.is_initialized() and distributed.destroy_process_group())


@contextlib.contextmanager
def _hidden() -> Iterator[None]:
    """Without the variables that say to accelerate that there are other ranks."""
    before = {name: os.environ.pop(name) for name in VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


def claim(path: Path, wait: bool = True) -> contextlib.AbstractContextManager | None:
    """Claim a lock file until the returned context, which is entered already, is left.

    None if another process holds the claim and this one is not to `wait` until that ends.
    OSError: the file cannot be written (disk full, folder gone or read-only).
    """
    blank = None
    while True:
        blank = _drop_blank(path, blank)
        try:
            return SoftFileLease(path, lease_duration=STALE_SECONDS).acquire(timeout=STALE_SECONDS if wait else 0)
        except Timeout:
            if not wait:
                return None
            _log.info("Waiting for %s, held by another process.", path)
        except OSError as error:
            reason = error.strerror or error
            mend = "free some space, or make its folder writable (a run store is moved by DFL_STORE)"
            raise OSError(f"{path} cannot be written ({reason}): {mend}.") from error


def _drop_blank(path: Path, seen: tuple[int, int] | None) -> tuple[int, int] | None:
    """Remove a claim whose maker died before it could sign: filelock never does.

    It goes when the clock says so, or when it has outlasted a whole wait, whatever the clock of its maker's machine
    says. `seen` is what this function returned before that wait: which blank claim there is.
    """
    with contextlib.suppress(FileNotFoundError):
        state = path.stat()
        if state.st_size == 0:
            found = (state.st_ino, state.st_mtime_ns)
            if found != seen and time.time() - state.st_mtime <= STALE_SECONDS:
                return found
            path.unlink()
    return None

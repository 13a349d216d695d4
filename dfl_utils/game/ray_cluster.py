"""Shards made on an elastic cluster, by Ray Data: images go out to actors, shards come back in the run store.

Ray starts the actors, gives each its GPU, restarts what dies and hands its images to others. What an actor does is what
a single process does: it plays the game, whose shards lie where every process looks for them. Afterwards the same call
in the process that asked finds them all and loads no model.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dfl_utils.game.loops import Game
from dfl_utils.store.blocks import SHARD_IMAGES
from dfl_utils.store.store import RunStore
from dfl_utils.world.data import Example
from dfl_utils.world.profile import Profile

Play = Callable[[Game, Sequence[Example]], Any]


def fill(
    profile: Profile,
    root: Path | str,
    examples: Sequence[Example],
    play: Play,
    *,
    workers: int | tuple[int, int] = 2,
    num_gpus: float = 0,
    num_cpus: float = 1,
) -> list[dict[str, Any]]:
    """Have actors make the shards of images.

    Args:
        profile: names models and device; its folders, `root` and the images lie at the same place on every machine.
        root: the run store, on a file system that the cluster shares.
        examples: cut in shards of `SHARD_IMAGES`, from the start as `blocks.cut` does it.
        play: such as `lambda game, examples: game.i2t2i(examples, 10)`, sent to the actors by cloudpickle. What it
            returns is dropped.
        workers: actors, at least 1, or the fewest and the most between which Ray may choose.
        num_gpus, num_cpus: of one actor.

    Returns:
        Of each `shard`, in order and once however many actors died over it: the Ray `node` and the process `pid` that
        worked on it at last.

    Raises:
        ImportError: Ray is not installed.
        ValueError: a cluster that has not got what one actor asks for.
        ray.exceptions.RayError: an actor raised an error of its own, which no other would do better.
    """
    ray = _ray()
    if not ray.is_initialized():
        ray.init(log_to_driver=True, include_dashboard=False)  # RAY_ADDRESS names a cluster; without it, this machine
    _require(ray.cluster_resources(), {"CPU": num_cpus, "GPU": num_gpus})
    shards = [list(examples[start : start + SHARD_IMAGES]) for start in range(0, len(examples), SHARD_IMAGES)]
    pool = {"size": workers} if isinstance(workers, int) else {"min_size": workers[0], "max_size": workers[1]}
    done = (
        ray.data.from_items([{"shard": k} for k in range(len(shards))], override_num_blocks=len(shards))
        .map_batches(
            Actor,
            fn_constructor_args=(profile, root, shards, play),
            batch_size=1,  # one shard
            compute=ray.data.ActorPoolStrategy(**pool),
            # A dead actor, or one whose machine was taken away, is started again, as often as need be, and what it was
            # doing is done again: so Ray Data has it unless told otherwise, and the run store knows what is finished.
            num_gpus=num_gpus,
            num_cpus=num_cpus,
        )
        .take_all()
    )
    if sorted(row["shard"] for row in done) != list(range(len(shards))):
        raise RuntimeError(f"Ray brought back {len(done)} shards for {len(shards)}: run it again.")
    return sorted(done, key=lambda row: row["shard"])


class Actor:
    """One process of the cluster: prepared once, then told which shards to make."""

    def __init__(self, profile: Profile, root: Path | str, shards: list[list[Example]], play: Play):
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):  # Ray shares the work, not a launcher's ranks
            os.environ.pop(name, None)
        self.game, self.shards, self.play = Game(profile, RunStore(root), progress=False), shards, play

    def __call__(self, batch: dict) -> dict:
        """The shards that a batch names, made; the batch comes back with who made it."""
        import ray

        for shard in batch["shard"]:
            self.play(self.game, self.shards[shard])
        node = ray.get_runtime_context().get_node_id()
        return batch | {"node": [node] * len(batch["shard"]), "pid": [os.getpid()] * len(batch["shard"])}


def _ray():
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError("Ray is not installed: pip install -e '.[ray]' -c constraints.txt") from error
    return ray


def _require(there: dict[str, float], wanted: dict[str, float]) -> None:
    for name, number in wanted.items():
        if number > there.get(name, 0):
            raise ValueError(
                f"One worker asks for {number:g} {name} and the Ray cluster has {there.get(name, 0):g}: it would wait "
                "forever; ask for less, or join machines that have it."
            )

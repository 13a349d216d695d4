"""Shards made on an elastic cluster, by Ray Data: image ids go out to actors, shards come back in the run store.

Ray starts the actors, gives each its GPU, restarts what dies and hands its ids to others. What an actor does with ids
is what a single process does: it plays the game, whose shards lie where every process looks for them. Afterwards the
same call in the process that asked finds them all and loads no model.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dfl_utils.store.blocks import SHARD_IMAGES

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when Ray is started: it reports to nobody
Play = Callable[[Sequence[int]], Any]


def fill(
    prepare: Callable[[], Play],
    image_ids: Sequence[int],
    *,
    workers: int | tuple[int, int] = 2,
    num_gpus: float = 0,
    num_cpus: float = 1,
) -> list[dict[str, Any]]:
    """Have actors make the shards of images.

    Args:
        prepare: runs once in each actor, loads what it needs and returns what makes the shards of some ids; see
            `player`. It is sent to the actors by cloudpickle.
        image_ids: cut in shards of `SHARD_IMAGES`, from the start as `blocks.cut` does it.
        workers: actors, or the fewest and the most between which Ray may choose.
        num_gpus, num_cpus: of one actor.

    Returns:
        Of each shard, in the order of the ids and once however many actors died over it: its `ids`, and the Ray `node`
        and the process `pid` that worked on it at last.

    Raises:
        ImportError: Ray is not installed.
        ValueError: no ids, the same id twice, no workers, or a cluster that has not got what one actor asks for.
        ray.exceptions.RayError: an actor raised an error of its own, which no other would do better.
    """
    ray = _ray()
    smallest = workers if isinstance(workers, int) else min(workers)
    ids = [int(image_id) for image_id in image_ids]
    if not ids or len(set(ids)) < len(ids) or smallest < 1:
        raise ValueError(
            f"{len(ids)} image ids, {len(set(ids))} of them different, and {workers} workers: give each image once, "
            "and at least one worker."
        )
    if not ray.is_initialized():
        ray.init(log_to_driver=True, include_dashboard=False)  # RAY_ADDRESS names a cluster; without it, this machine
    _require(ray.cluster_resources(), {"CPU": num_cpus, "GPU": num_gpus})
    rows = [{"shard": k, "ids": ids[start : start + SHARD_IMAGES]}
            for k, start in enumerate(range(0, len(ids), SHARD_IMAGES))]  # fmt: skip
    done = (
        ray.data.from_items(rows, override_num_blocks=len(rows))
        .map_batches(
            Actor,
            fn_constructor_args=(prepare,),
            batch_size=1,  # one shard
            compute=ray.data.ActorPoolStrategy(**_pool(workers)),
            # A dead actor, or one whose machine was taken away, is started again, as often as need be, and what it was
            # doing is done again: so Ray Data has it unless told otherwise, and the run store knows what is finished.
            num_gpus=num_gpus,
            num_cpus=num_cpus,
        )
        .take_all()
    )
    if sorted(row["shard"] for row in done) != list(range(len(rows))):
        raise RuntimeError(f"Ray brought back {len(done)} shards for {len(rows)}: run it again.")
    return sorted(done, key=lambda row: row["shard"])


class Actor:
    """One process of the cluster: prepared once, then fed with shards of ids."""

    def __init__(self, prepare: Callable[[], Play]):
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):  # Ray shares the work, not a launcher's ranks
            os.environ.pop(name, None)
        self.play = prepare()

    def __call__(self, batch: dict) -> dict:
        """The shards of a batch's one row of ids, made; the row comes back with who made it."""
        import ray

        for ids in batch["ids"]:
            self.play([int(image_id) for image_id in ids])
        node = ray.get_runtime_context().get_node_id()
        return batch | {"node": [node] * len(batch["shard"]), "pid": [os.getpid()] * len(batch["shard"])}


def player(profile, root: Path | str, dataset: str, split: str, play: Callable) -> Callable[[], Play]:
    """What prepares an actor for the two games, for `fill`.

    Args:
        profile: names models, data and device; its folders, and `root`, are those of every machine of the cluster.
        root: the run store, on a file system that the cluster shares.
        dataset, split: whose images the ids are, as for `data.load`; read by each actor.
        play: `play(game, examples)`, such as `lambda game, examples: game.i2t2i(examples, 10)`. Its drawings stay
            where they are: what it returns is dropped.
    """

    def prepare() -> Play:
        from dfl_utils.game.loops import Game
        from dfl_utils.store.store import RunStore
        from dfl_utils.world import data

        game = Game(profile, RunStore(root), progress=False)
        known = {example.image_id: example for example in data.load(profile, dataset, split)}

        def make(image_ids: Sequence[int]) -> None:
            unknown = [image_id for image_id in image_ids if image_id not in known]
            if unknown:
                raise ValueError(f"{dataset} {split} has no image {unknown[0]}: give ids of `data.load`'s examples.")
            play(game, [known[image_id] for image_id in image_ids])

        return make

    return prepare


def _ray():
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError("Ray is not installed: pip install -e '.[ray]' -c constraints.txt") from error
    return ray


def _pool(workers: int | tuple[int, int]) -> dict[str, int]:
    return {"size": workers} if isinstance(workers, int) else {"min_size": workers[0], "max_size": workers[1]}


def _require(there: dict[str, float], wanted: dict[str, float]) -> None:
    for name, number in wanted.items():
        if number > there.get(name, 0):
            raise ValueError(
                f"One worker asks for {number:g} {name} and the Ray cluster has {there.get(name, 0):g}: it would wait "
                "forever; ask for less, or join machines that have it."
            )

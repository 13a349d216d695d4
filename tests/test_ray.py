"""Ray Data makes the shards that one process makes, also where one of its two workers is killed.

Workers import this module: what takes long to import is imported where it is used.
"""

import os
import secrets
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from dfl_utils.game import ray_cluster
from dfl_utils.store.store import Kind, RunStore

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")  # of its own settings


def talk(game, examples):
    """The shard function of the tests; by name, so that what is sent to the workers is this module's."""
    return game.sample_captions(examples, 1)


class Prepare:
    """Prepares a worker that is killed once, in the middle of a shard, and then plays the game."""

    def __init__(self, root, prepare_game, victim):
        self.root, self.prepare_game, self.victim = root, prepare_game, victim

    def __call__(self):
        store, loaded = RunStore(self.root), []

        def play(image_ids):
            def count():
                died = Path(self.root) / "died"
                if self.victim in image_ids and not died.exists():
                    (Path(self.root) / "victim").write_text(str(self.victim))
                    died.write_text(str(os.getpid()))
                    os.kill(os.getpid(), signal.SIGKILL)  # the claim of the shard in hand is left behind
                return {"ids": np.array(image_ids)}, len(image_ids)

            store.get(Kind("test-count"), {"ids": list(image_ids)}, count)
            loaded.append(loaded[0] if loaded else self.prepare_game())  # not before: a worker loads for ten seconds
            loaded[0](image_ids)

        return play


@pytest.fixture(scope="module")
def examples(mini):
    from dfl_utils.world import data

    return data.subset(data.load(mini, "coco", "test"), 17, seed=0)  # two shards


@pytest.fixture(scope="module")
def cluster():
    """A local Ray of two processors, which leaves nothing behind."""
    import ray

    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # a longer path is too long for its sockets
    here = str(Path(__file__).parent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else it writes one to the home folder
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", os.pathsep.join([here, *sys.path]))
        patch.delenv("RAY_ADDRESS", raising=False)
        options = {"num_cpus": 2, "include_dashboard": False, "log_to_driver": False, "_temp_dir": folder}
        ray.init("local", object_store_memory=100 * 2**20, **options)
        yield ray
        ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def filled(cluster, mini, examples, tmp_path_factory):
    """The store that two workers filled, one of which was killed, and what `fill` said of it."""
    root = tmp_path_factory.mktemp("cluster")
    ids = [example.image_id for example in examples]
    game = ray_cluster.player(mini, root, "coco", "test", talk)
    prepare = Prepare(root, game, ids[0])
    return root, ray_cluster.fill(prepare, ids, workers=2)


def test_the_shards_are_those_of_one_process(filled, mini, examples, tmp_path, monkeypatch):
    from dfl_utils.game.loops import Game

    root, _ = filled
    alone = Game(mini, RunStore(tmp_path), progress=False)
    wanted = alone.sample_captions(examples, 1)
    reader = Game(mini, RunStore(root), progress=False)
    monkeypatch.setattr(Game, "captioner", property(lambda self: pytest.fail("a model was loaded")))
    assert reader.sample_captions(examples, 1) == wanted
    assert reader.store.spent["captions"].made == 0
    names = [sorted(path.name for path in place.glob("captions-*.safetensors")) for place in (root, tmp_path)]
    assert names[0] == names[1] and len(names[0]) == 2


def test_a_worker_was_killed_and_nothing_is_lost_or_counted_twice(filled, examples):
    root, found = filled
    # The one that died may have finished another shard before; the one that it had in hand is of somebody else.
    victim = int((root / "victim").read_text())
    (again,) = (part for part in found if victim in part["ids"])
    assert int((root / "died").read_text()) != again["pid"]
    ids = [image_id for part in found for image_id in part["ids"]]
    assert ids == [example.image_id for example in examples]
    store, counted = RunStore(root), []
    for part in found:
        key = {"ids": [int(image_id) for image_id in part["ids"]]}
        counted += store.get(Kind("test-count"), key, lambda: pytest.fail("a shard is missing"))["ids"].tolist()
    assert counted == ids and store.spent["test-count"].calls == len(ids)
    assert not list(root.glob("*.partial"))


def test_what_a_cluster_has_not_got_is_told_at_once(cluster, monkeypatch):
    with pytest.raises(ValueError, match="One worker asks for 1 GPU and the Ray cluster has 0: .* wait forever"):
        ray_cluster.fill(dict, [1], num_gpus=1)
    for ids, workers in (([1, 2, 1], 2), ([1], 0)):
        with pytest.raises(ValueError, match="give each image once, and at least one worker"):
            ray_cluster.fill(dict, ids, workers=workers)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"Ray is not installed: pip install -e '\.\[ray\]'"):
        ray_cluster.fill(dict, [1])

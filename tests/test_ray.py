"""Ray Data makes the shards that one process makes, also where one of its two workers is killed."""

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
from dfl_utils.game.loops import Game
from dfl_utils.store.store import Kind, RunStore
from dfl_utils.world import data

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")  # of its own settings


class Talk:
    """Captions of a shard; the worker that first has the victim's is killed in the middle of it."""

    def __init__(self, root, victim):
        self.root, self.victim = root, victim

    def __call__(self, game, examples):
        ids = [example.image_id for example in examples]

        def count():
            died = Path(self.root) / "died"
            if self.victim in ids and not died.exists():
                died.write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGKILL)  # the claim of the shard in hand is left behind
            return {"ids": np.array(ids)}, len(ids)

        game.store.get(Kind("test-count"), {"ids": ids}, count)
        game.sample_captions(examples, 1)


@pytest.fixture(scope="module")
def examples(mini):
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
    return root, ray_cluster.fill(mini, root, examples, Talk(root, examples[0].image_id), workers=2)


def test_the_shards_are_those_of_one_process(filled, mini, examples, tmp_path, monkeypatch):
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
    assert [part["shard"] for part in found] == [0, 1]
    assert int((root / "died").read_text()) != found[0]["pid"]
    ids, store, counted = [example.image_id for example in examples], RunStore(root), []
    for part in (ids[:16], ids[16:]):
        made = store.get(Kind("test-count"), {"ids": part}, lambda: pytest.fail("a shard is missing"))
        counted += made["ids"].tolist()
    assert counted == ids and store.spent["test-count"].calls == len(ids)
    assert not list(root.glob("*.partial"))


def test_what_a_cluster_has_not_got_is_told_at_once(cluster, mini, examples, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="One worker asks for 1 GPU and the Ray cluster has 0: .* wait forever"):
        ray_cluster.fill(mini, tmp_path, examples, Talk, num_gpus=1)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"Ray is not installed: pip install -e '\.\[ray\]'"):
        ray_cluster.fill(mini, tmp_path, examples, Talk)

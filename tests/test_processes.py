"""Several ranks: each starts at its own part, two fill one store and train one pair, and nobody could tell from it."""

import contextlib
import json
import logging
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import plain_map
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from dfl_utils.build import chapter, cli
from dfl_utils.game.loops import Game
from dfl_utils.models import captioner as captioners
from dfl_utils.store import blocks, processes
from dfl_utils.store.processes import Place, own_first, place
from dfl_utils.store.store import RunStore
from dfl_utils.training import finetune
from dfl_utils.training.finetune import Recipe
from dfl_utils.training.finetuned import Finetuner, load_pipeline
from dfl_utils.world import data, profile


@pytest.fixture
def at(monkeypatch):
    """Be a rank among several."""

    def become(rank, world_size, local_rank=0):
        for name, value in zip(processes.VARIABLES, (rank, world_size, local_rank), strict=True):
            monkeypatch.setenv(name, str(value))

    return become


# --- a rank by itself -------------------------------------------------------------------------------------


def test_the_launcher_says_which_rank_a_process_is(at, monkeypatch):
    at(5, 8, 1)
    assert place() == Place(rank=5, world_size=8, local_rank=1)
    for name in processes.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert place() == Place(0, 1, 0) and own_first([1, 2, 3]) == [1, 2, 3]  # nobody launched it


def test_an_impossible_place_or_timeout_is_told(at, capsys, monkeypatch):
    for wrong in ((2, 2), (0, 2, "x")):
        at(*wrong)
        with pytest.raises(ValueError, match="RANK is .*give whole numbers with 0 <= RANK < WORLD_SIZE"):
            place()
        assert cli.main(["chapters"]) == 2 and "RANK is" in capsys.readouterr().err
    monkeypatch.setenv("DFL_RANK_TIMEOUT", "nan")
    with pytest.raises(ValueError, match="DFL_RANK_TIMEOUT is 'nan': give seconds"):
        processes.timeout()


def test_every_rank_starts_at_its_own_part_and_then_does_the_others(at):
    at(0, 3)
    assert own_first(range(7)) == [0, 3, 6, 1, 4, 2, 5]
    at(1, 3)
    assert own_first(range(7)) == [1, 4, 2, 5, 0, 3, 6]
    at(2, 3)
    assert own_first("abc") == ["c", "a", "b"]  # fewer jobs than there might be
    at(1, 2)  # jobs of one shard stay with one rank
    assert own_first(["clip 0", "dino 0", "clip 1", "dino 1", "clip 2"], 2) == [
        *("clip 1", "dino 1"),
        *("clip 0", "dino 0", "clip 2"),
    ]


@pytest.mark.parametrize(("world_size", "device", "chosen"), [(8, "cuda", [1]), (8, "cuda:3", []), (8, "cpu", []),
                                                              (1, "cuda", [])])  # fmt: skip
def test_cuda_is_the_gpu_of_the_local_rank(at, monkeypatch, world_size, device, chosen):
    """Five of a machine's processes share its four GPUs; alone, torch's own choice stands."""
    found = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", found.append)
    at(world_size - 1, world_size, 5)
    processes.use_device(device)
    assert found == chosen


def test_the_code_of_rank_0_alone_is_the_runs(at, monkeypatch, capsys):
    def _chapters(_):
        raise error

    monkeypatch.setattr(cli, "_chapters", _chapters)
    for error in (chapter.BuildFailed("it failed"), RuntimeError("out of memory")):
        at(1, 2)
        assert cli.main(["chapters"]) == 0
        told = capsys.readouterr().err
        assert str(error) in told and "rank 1 stops here, and the others do its part" in told
    at(0, 2)
    with pytest.raises(RuntimeError):
        cli.main(["chapters"])


def test_a_rank_that_never_comes_is_not_waited_for_forever(at, monkeypatch):
    at(0, 2)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "0")
    monkeypatch.setenv("DFL_RANK_TIMEOUT", "0.2")
    with pytest.raises(processes.RankLost, match="Rank 0 of 2 lost another while all met .*start all ranks again"):
        processes.join(cpu=True)


# --- two ranks of torchrun --------------------------------------------------------------------------------
RECIPE = Recipe(steps=3, batch_size=4, lr=1e-2, decoder="tiny", connect="gumbel", micro_batches=3)
LOST = Recipe(steps=3, batch_size=2, lr=1e-2, decoder="tiny", micro_batches=2, seed=7, way="alternating")
ALONE = [Recipe(("caption_loss",), ("captioner",), steps=1, batch_size=2, seed=seed) for seed in range(2)]


def game_and_finetuner(models, root):
    blocks.SHARD_IMAGES = 2
    models = replace(models, draw_batch=1)  # on some processors a batch of another size rounds otherwise
    examples = data.subset(data.load(models, "coco", "val"), 8, seed=0)
    store = RunStore(root)
    finetuner = Finetuner(models, store, examples, progress=False)
    finetuner.vocabulary_map = plain_map(captioners.load(models), load_pipeline(models))
    return Game(models, store, num_inference_steps=1, progress=False), finetuner, examples


def play(game, examples):
    """Everything that a loop brings back, as arrays."""
    run, other = game.i2t2i(examples, 1), game.t2i2t(examples[:4], 1, num_beams=1, similarities=("clip",))
    found = {f"i2t2i {name}": sim for name, sim in run.sim_image.items()}
    found |= {"captions": np.array(run.captions), "captions_hat": np.array(other.captions_hat)}
    return found | {"features": run.drawings.features(), "t2i2t": other.sim_image["clip"]}


def learn(finetuner, recipes):
    """Losses and trained weights of every run."""
    found = {}
    for k, run in enumerate(finetuner.run(recipes)):
        job = finetuner._job(run.recipe)
        content = finetuner.store.get(job.kind, job.key, job.make)
        found |= {f"run {k} {name}": value for name, value in content.items()}
    return found


def work(root):
    """What one of the two ranks does, until it is killed or its partner is."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, when the other rank dies
    here = place()
    game, finetuner, examples = game_and_finetuner(profile.load("mini").pair(captioner="blip-base"), f"{root}/store")
    found = play(game, examples) | learn(finetuner, [ALONE[0], RECIPE, ALONE[1]])
    np.savez(f"{root}/rank{here.rank}.npz", **found)
    spent = {kind: spent.made for kind, spent in game.store.spent.items()}
    Path(f"{root}/rank{here.rank}.json").write_text(json.dumps(spent))

    finetune.CHECKPOINT_SECONDS = -1
    batch = finetuner.pairs

    def until_killed(*arguments):
        lessons = batch(*arguments)
        drawn = lessons.batch

        def killing(step, rows):
            if step == 2 and here.rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return drawn(step, rows)

        lessons.batch = killing
        return lessons

    finetuner.pairs = until_killed
    try:
        finetuner.run([LOST])
    except processes.RankLost as error:
        Path(f"{root}/lost.txt").write_text(str(error))
    os._exit(0)  # at once: a fork's orderly end would wait for the one that is dead


@pytest.fixture(scope="module")
def single(mini, tmp_path_factory):
    """What one process makes, undisturbed; and its game and finetuner."""
    before = blocks.SHARD_IMAGES
    game, finetuner, examples = game_and_finetuner(mini, tmp_path_factory.mktemp("single"))
    yield play(game, examples) | learn(finetuner, [ALONE[0], RECIPE, ALONE[1]]), game, finetuner
    blocks.SHARD_IMAGES = before


def launch(root):
    """What `torchrun --standalone --nproc-per-node 2` does, with ranks that are forked and so have all imported."""
    logging.disable()  # that one of them was killed
    config = {"min_nodes": 1, "max_nodes": 1, "nproc_per_node": 2, "max_restarts": 0, "start_method": "fork"}
    ranks = LaunchConfig(**config, run_id="ranks", rdzv_backend="c10d", rdzv_endpoint="localhost:0")
    with contextlib.suppress(ChildFailedError):  # one is killed
        elastic_launch(ranks, work)(root)


@pytest.fixture(scope="module")
def double(quiet, tmp_path_factory):
    """The folder that two ranks have filled, one of them killed at its end."""
    root = tmp_path_factory.mktemp("double")
    quiet(launch, root)
    assert (root / "rank0.npz").exists() and (root / "rank1.npz").exists()
    return root


def test_two_ranks_bring_back_what_one_does(single, double):
    for rank in range(2):
        found = np.load(double / f"rank{rank}.npz")
        assert set(found.files) == single[0].keys()
        for name, value in single[0].items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_two_ranks_make_every_shard_once(single, double):
    made = [json.loads((double / f"rank{rank}.json").read_text()) for rank in range(2)]
    alone = {kind: spent.made for kind, spent in single[1].store.spent.items()}
    assert {kind: sum(one.get(kind, 0) for one in made) for kind in alone} == alone
    assert alone["captions"] == 4 and alone["weights"] == alone["finetuning"] == 3


def test_a_rank_that_is_killed_ends_the_other_with_a_sentence(double):
    told = (double / "lost.txt").read_text()
    assert told.startswith("Rank 0 of 2 lost another while step 2 was added up (") and told.count("\n") == 0
    assert "they go on from the last state" in told


def test_one_process_takes_up_what_two_have_left(single, double, mini, monkeypatch):
    _, _, finetuner = single
    (state,) = (double / "store").glob("*.training/state.safetensors")
    assert state.stat().st_size
    again = Finetuner(mini, RunStore(double / "store"), finetuner.examples, progress=False)
    again._loaded |= finetuner._loaded  # models and map
    steps, batch = [], finetune.Finetuning._learn
    monkeypatch.setattr(finetune.Finetuning, "_learn", lambda self: steps.append(self.step) or batch(self))
    found = learn(again, [LOST])
    assert steps == [1, 2]  # the state was saved when the losses of the weights of step 1 had been seen
    wanted = learn(finetuner, [LOST])
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)

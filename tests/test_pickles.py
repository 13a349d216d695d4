"""Pickles become safetensors without being run, and load as before."""

import json
import shutil

import numpy as np
import pytest
import torch
from layouts import Trap, pickled, read, write
from PIL import Image
from safetensors.torch import load_file

from dfl_utils.build import cli, pickles
from dfl_utils.models import similarity
from dfl_utils.world import profile
from dfl_utils.world.profile import MINI

IMAGES = [Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))]


@pytest.fixture
def folder(tmp_path):
    made = shutil.copytree(MINI / "dino", tmp_path / "published")
    pickled(made)
    return made


def embedding(folder):
    return similarity.load_dino(profile.load("mini", dino=str(folder))).embed(IMAGES)


def test_the_model_is_the_same(folder, tmp_path, capsys):
    (folder / "vocab.txt").write_text("a\n")
    (folder / "README.md").write_text("Of the published weights.")
    assert cli.main(["convert", str(folder), str(tmp_path / "ours")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "ours" / "model.safetensors")
    names = {file.name for file in (tmp_path / "ours").iterdir()}
    assert names == {"config.json", "preprocessor_config.json", "vocab.txt", "model.safetensors"}
    shipped = load_file(MINI / "dino" / "model.safetensors")
    found = load_file(tmp_path / "ours" / "model.safetensors")
    assert found.keys() == shipped.keys()
    assert all(torch.equal(found[name], shipped[name]) and found[name].dtype == torch.float16 for name in found)
    np.testing.assert_array_equal(embedding(tmp_path / "ours"), embedding(MINI / "dino"))


def test_tied_weights_and_views_are_written(folder, tmp_path):
    table = torch.arange(6.0).reshape(2, 3)
    torch.save({"in": table, "out": table, "turned": table.T, "row": table[1]}, folder / "pytorch_model.bin")
    found = load_file(pickles.convert(folder, tmp_path / "ours")[0])
    assert torch.equal(found["in"], table) and torch.equal(found["out"], table)
    assert torch.equal(found["turned"], table.T) and torch.equal(found["row"], table[1])


def test_shards_stay_shards(folder, tmp_path):
    tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
    (folder / "pytorch_model.bin").unlink()
    places = {}
    for k in range(2):
        name = f"pytorch_model-{k + 1:05}-of-00002.bin"
        part = dict(list(tensors.items())[k::2])
        torch.save(part, folder / name)
        places |= dict.fromkeys(part, name)
    write(folder / "pytorch_model.bin.index.json", {"weight_map": places})
    files = pickles.convert(folder, tmp_path / "ours")
    assert [file.name for file in files] == [f"model-{k:05}-of-00002.safetensors" for k in (1, 2)]
    assert read(tmp_path / "ours" / "model.safetensors.index.json")["weight_map"].keys() == tensors.keys()
    np.testing.assert_array_equal(embedding(tmp_path / "ours"), embedding(MINI / "dino"))
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(FileNotFoundError, match="lacks pytorch_model-00002-of-00002.bin"):
        pickles.convert(folder, tmp_path / "again")


@pytest.mark.parametrize("content", ["trap", "damage", "state"])
def test_what_is_more_than_tensors_is_refused_and_leaves_nothing(folder, tmp_path, content):
    file, sprung = folder / "pytorch_model.bin", tmp_path / "sprung"
    if content == "trap":
        torch.save({"weight": Trap(sprung)}, file)
    elif content == "damage":
        file.write_bytes(file.read_bytes()[:1000])
    else:
        torch.save({"epoch": 3, "state_dict": {}}, file)
    with pytest.raises(ValueError, match="pytorch_model.bin (is damaged, or holds more|holds no plain dictionary)"):
        pickles.convert(folder, tmp_path / "ours")
    assert not sprung.exists() and not (tmp_path / "ours").exists()


def test_bad_folders_are_refused(folder, tmp_path, capsys):
    assert cli.main(["convert", str(tmp_path / "nowhere"), str(tmp_path / "ours")]) == 2
    assert "There is no folder" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="has no pytorch_model.bin or diffusion_pytorch_model.bin"):
        pickles.convert(MINI / "dino", tmp_path / "ours")
    with pytest.raises(FileExistsError, match="is there already"):
        pickles.convert(folder, tmp_path)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "vit"

"""The published files: facts that can be checked without a connection, and whether what is on a disk is whole."""

import importlib.util
import json
import re
import shutil
from dataclasses import replace
from importlib.metadata import distribution
from pathlib import Path

import pytest
import torch

from dfl_utils.build import catalogue, doctor
from dfl_utils.world import profile

PAPER = profile.PROFILES["paper"]
FILES = {file.name: file for file in catalogue.FILES}


def test_the_paper_needs_its_checkpoints_and_data_and_the_embedded_profile_nothing():
    assert {model.id for model in catalogue.models(PAPER)} == set(catalogue.MODELS) == set(PAPER.revisions)
    assert catalogue.files(PAPER) == list(catalogue.FILES)
    mini = profile.load("mini")
    assert catalogue.models(mini) == [] and catalogue.files(mini) == []


def test_a_replaced_model_is_needed_in_the_place_of_the_papers():
    changed = profile.configured("paper", clip="lab/clip", inception="/i.pth", word_vectors=None)
    models = {model.id: model for model in catalogue.models(changed)}
    assert models["lab/clip"] == catalogue.Model("lab/clip") and "openai/clip-vit-large-patch14" not in models
    names = {file.name: file for file in catalogue.files(changed)}
    assert "word-vectors" not in names and names["inception"].places(changed) == (Path("/i.pth"),)


def test_urls_places_and_hashes_are_those_of_the_packages_that_read_them():
    module = distribution("torch-fidelity").locate_file("torch_fidelity/feature_extractor_inceptionv3.py")
    assert f'"{FILES["inception"].url}"' in Path(module).read_text()
    assert FILES["inception"].url.endswith(f"-{FILES['inception'].digest.removeprefix('sha256:')[:8]}.pth")
    script = importlib.util.find_spec("pycocoevalcap.spice.get_stanford_models").origin
    text = Path(script).read_text()
    assert "http://nlp.stanford.edu/software/{}.zip" in text and f"'{catalogue.CORENLP}'" in text
    (jar,) = FILES["corenlp"].places(PAPER)
    assert jar.parent == Path(script).with_name("lib") and jar.parent.is_dir()
    assert [Path(member).name for member in FILES["corenlp"].members][1] == jar.name
    for file in catalogue.FILES:
        assert re.fullmatch("|sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}", file.digest)


@pytest.mark.parametrize("variables", [{}, {"TORCH_HOME": "/t"}, {"XDG_CACHE_HOME": "/x"}])
def test_inception_lies_where_torchs_hub_keeps_it(variables, monkeypatch):
    for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (place,) = FILES["inception"].places(replace(PAPER, inception=None))
    assert place.parent == Path(torch.hub.get_dir()) / "checkpoints"


# --- what is on the disk ----------------------------------------------------------------------------------
WEIGHTS = (profile.MINI / "dino/model.safetensors").read_bytes()


@pytest.fixture
def judge(tmp_path):
    return shutil.copytree(profile.MINI / "dino", tmp_path / "judge")


def test_the_embedded_models_are_whole():
    folders = [path for path in profile.MINI.iterdir() if list(path.glob("config.json")) or list(path.glob("model_i*"))]
    assert len(folders) >= 9
    assert {path.name: doctor.model_flaw(path) for path in folders} == {path.name: None for path in folders}


@pytest.mark.parametrize(
    ("name", "content", "flaw"),
    [
        ("config.json", None, "lacks config.json"),
        ("config.json", b"{", "has a broken file: .*config.json is not valid JSON"),
        ("model.safetensors", WEIGHTS[:-1], "lacks a whole model.safetensors"),
        ("model.safetensors", None, "lacks its safetensors weights .pickles are not loaded"),
        ("model.safetensors.index.json", b'{"weight_map": {"w": "model-2.safetensors"}}', "lacks a whole model-2"),
    ],
)
def test_a_models_flaw_is_named(judge, name, content, flaw):
    if content is None:
        (judge / name).unlink()
        (judge / "pytorch_model.bin").write_bytes(b"a pickle")
    else:
        (judge / name).write_bytes(content)
    assert re.match(flaw, doctor.model_flaw(judge))


def test_a_pipelines_lost_part_is_named(judge, tmp_path):
    index = {"unet": ["diffusers", "U"], "safety_checker": ["x", "S"], "image_encoder": [None, None]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert doctor.model_flaw(tmp_path) == "lacks unet"
    judge.rename(tmp_path / "unet")
    assert doctor.model_flaw(tmp_path) is None


def test_a_model_in_the_hubs_cache_counts_only_at_its_commit(judge, tmp_path, monkeypatch):
    commit = "a" * 40
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "cache/models--lab--judge/snapshots" / commit
    folder.parent.mkdir(parents=True)
    judge.rename(folder)
    online = profile.configured("paper", models_root=tmp_path / "none")
    assert doctor.flaw(online, catalogue.Model("lab/judge", revision=commit)) is None
    assert doctor.flaw(online, catalogue.Model("lab/judge", revision="b" * 40)) == "is missing"


def test_a_folder_of_images_is_counted_where_the_readers_look(tmp_path):
    asked, images = profile.configured("paper", coco_root=tmp_path), replace(FILES["coco-val"], count=2)
    assert doctor.flaw(asked, images) == "is missing"
    folder = tmp_path / "images/val2014"
    folder.mkdir(parents=True)
    for name in ("1.jpg", ".hidden"):
        (folder / name).touch()
    assert doctor.flaw(asked, images) == "has 1 of 2 images"
    (folder / "2.jpg").touch()
    assert doctor.flaw(asked, images) is None


def test_a_file_of_another_length_is_found(tmp_path):
    asked = profile.configured("paper", inception=str(tmp_path / "i.pth"))
    (tmp_path / "i.pth").write_bytes(b"12")
    assert doctor.flaw(asked, FILES["inception"]) == "has 2 of 95,628,359 bytes"
    assert doctor.flaw(asked, replace(FILES["inception"], bytes=2)) is None

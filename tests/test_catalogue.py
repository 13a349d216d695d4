"""The published files: facts that can be checked without a connection, and whether what is on a disk is whole."""

import importlib.util
import json
import re
import struct
from dataclasses import replace
from fnmatch import fnmatch
from importlib.metadata import distribution
from pathlib import Path

import pytest

from dfl_utils.build import catalogue, inventory, web_files
from dfl_utils.world import profile

PAPER = profile.PROFILES["paper"]


def test_the_paper_needs_its_checkpoints_and_data_and_the_embedded_profile_nothing():
    assert {model.id for model in catalogue.models(PAPER)} == set(catalogue.MODELS) == set(PAPER.revisions)
    assert [file.name for file in catalogue.files(PAPER)] == [file.name for file in web_files.FILES]
    mini = profile.load("mini")
    assert catalogue.models(mini) == [] and catalogue.files(mini) == []


def test_a_replaced_model_is_needed_in_the_place_of_the_papers():
    changed = profile.configured("paper", clip="lab/clip", inception="/i.pth", word_vectors=None)
    models = {model.id: model for model in catalogue.models(changed)}
    assert models["lab/clip"] == catalogue.Model("lab/clip") and "openai/clip-vit-large-patch14" not in models
    names = {file.name: file for file in catalogue.files(changed)}
    assert "word-vectors" not in names and names["inception"].places(changed) == (Path("/i.pth"),)


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        *((name, True) for name in ("config.json", "vocab.txt", "unet/diffusion_pytorch_model.safetensors")),
        *((name, True) for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json")),
        *((name, False) for name in ("pytorch_model.bin", "tf_model.h5", "README.md", "flax_model.msgpack")),
        *((name, False) for name in ("vae/diffusion_pytorch_model.fp16.safetensors", "sd-v1-4.ckpt", "assets/a.json")),
        *((name, False) for name in ("safety_checker/model.safetensors", "unet/diffusion_pytorch_model.non_ema.bin")),
        *((name, False) for name in ("model.fp16-00001-of-00002.safetensors", "model.safetensors.index.fp16.json")),
    ],
)
def test_what_is_fetched_of_a_repository(path, wanted):
    chosen = any(fnmatch(path, pattern) for pattern in catalogue.ALLOW)
    assert (chosen and not any(fnmatch(path, pattern) for pattern in catalogue.IGNORE)) == wanted


def test_a_model_has_about_the_bytes_of_its_parameters():
    for model in catalogue.MODELS.values():
        if model.parameters:  # some save a tied table twice; a page of the hub rounds to three digits
            assert 0.995 < model.bytes / (model.parameters * 4e6) < 1.2, model.id


def test_hashes_look_like_hashes_and_only_archives_have_members():
    for file in web_files.FILES:
        assert file.sha256 is None or re.fullmatch("[0-9a-f]{64}", file.sha256)
        assert file.md5 is None or re.fullmatch("[0-9a-f]{32}", file.md5)
        assert bool(file.members) == file.url.endswith(".zip")
        assert file.url.startswith(("http://", "https://"))


def test_urls_and_places_are_those_of_the_packages_that_read_them():
    files = {file.name: file for file in web_files.FILES}
    module = distribution("torch-fidelity").locate_file("torch_fidelity/feature_extractor_inceptionv3.py")
    assert f'"{files["inception"].url}"' in Path(module).read_text()
    assert files["inception"].url.endswith(f"-{files['inception'].sha256[:8]}.pth")
    script = importlib.util.find_spec("pycocoevalcap.spice.get_stanford_models").origin
    text = Path(script).read_text()
    assert "http://nlp.stanford.edu/software/{}.zip" in text and f"'{web_files.CORENLP}'" in text
    assert files["corenlp"].url == f"https://nlp.stanford.edu/software/{web_files.CORENLP}.zip"  # by a safer way
    (jar,) = files["corenlp"].places(PAPER)
    assert jar.parent == Path(script).with_name("lib") and jar.parent.is_dir()
    assert all(Path(member).name in ("stanford-corenlp-3.6.0.jar", jar.name) for member in files["corenlp"].members)


def test_torchs_hub_is_found_without_torch(monkeypatch):
    import torch

    for variables in ({}, {"TORCH_HOME": "/t"}, {"XDG_CACHE_HOME": "/x"}):
        for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert web_files.torch_hub() == Path(torch.hub.get_dir()) / "checkpoints"


# --- what is on the disk ----------------------------------------------------------------------------------
def weights(values: int = 8) -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [values], "data_offsets": [0, 4 * values]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(4 * values)


@pytest.fixture
def judge(tmp_path):
    """Folder of a whole model with one file of weights."""
    (tmp_path / "judge").mkdir()
    (tmp_path / "judge/config.json").write_text('{"model_type": "vit"}')
    (tmp_path / "judge/preprocessor_config.json").write_text("{}")
    (tmp_path / "judge/model.safetensors").write_bytes(weights())
    return tmp_path / "judge"


def test_the_embedded_models_are_whole():
    folders = [path for path in profile.MINI.iterdir() if list(path.glob("config.json")) or list(path.glob("model_i*"))]
    assert len(folders) >= 9
    assert {path.name: inventory.model_flaw(path) for path in folders} == {path.name: None for path in folders}


@pytest.mark.parametrize(
    ("name", "content", "flaw"),
    [
        ("config.json", None, "lacks config.json"),
        ("config.json", b"{", "has a broken file (config.json: "),
        ("preprocessor_config.json", None, "lacks processor_config.json or preprocessor_config.json"),
        ("model.safetensors", weights()[:-1], "has a cut-off model.safetensors"),
        ("model.safetensors", b"", "has a cut-off model.safetensors"),
        ("model.safetensors", None, "lacks its safetensors weights"),
        ("model.safetensors.index.json", b'{"weight_map": {"w": "model-2.safetensors"}}', "lacks model-2.safetensors"),
    ],
)
def test_a_models_flaw_is_named(judge, name, content, flaw):
    if content is None:
        (judge / name).unlink()
    else:
        (judge / name).write_bytes(content)
    assert inventory.model_flaw(judge).startswith(flaw)


def test_pickles_and_half_precision_are_no_weights(judge):
    (judge / "model.safetensors").rename(judge / "model.fp16.safetensors")
    (judge / "pytorch_model.bin").write_bytes(b"a pickle")
    assert inventory.model_flaw(judge) == "lacks its safetensors weights (pickles are not loaded)"


def test_a_pipelines_flaw_names_its_part(judge, tmp_path):
    pipeline = tmp_path / "pipeline"
    pipeline.mkdir()
    index = {"_class_name": "P", "unet": ["diffusers", "U"], "tokenizer": ["transformers", "T"],
             "safety_checker": ["x", "S"], "scheduler": ["diffusers", "D"], "image_encoder": [None, None]}  # fmt: skip
    (pipeline / "model_index.json").write_text(json.dumps(index))
    judge.rename(pipeline / "unet")
    (pipeline / "scheduler").mkdir()
    (pipeline / "scheduler/scheduler_config.json").write_text("{}")
    assert inventory.model_flaw(pipeline) == "lacks the folder in its part tokenizer"
    (pipeline / "tokenizer").mkdir()
    (pipeline / "tokenizer/tokenizer_config.json").write_text("{}")
    assert "lacks tokenizer.json or vocab.txt or vocab.json and merges.txt" in inventory.model_flaw(pipeline)
    (pipeline / "tokenizer/vocab.txt").write_text("a")
    assert inventory.model_flaw(pipeline) is None


def test_a_model_in_the_hubs_cache_counts_only_at_its_commit(judge, tmp_path, monkeypatch):
    commit = "a" * 40
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "cache/models--lab--judge/snapshots" / commit
    folder.parent.mkdir(parents=True)
    judge.rename(folder)
    online = profile.configured("paper", models_root=tmp_path / "none")
    assert inventory.model_folder(online, catalogue.Model("lab/judge", commit)) == folder
    assert inventory.model_folder(online, catalogue.Model("lab/judge", "b" * 40)) is None


@pytest.fixture
def images():
    file = next(file for file in web_files.FILES if file.name == "coco-val")
    return replace(file, count=2)


def test_a_folder_of_images_is_counted_where_the_readers_look(images, tmp_path):
    asked = profile.configured("paper", coco_root=tmp_path)
    assert inventory.file_flaw(asked, images) == "is missing"
    folder = tmp_path / "images/val2014"
    folder.mkdir(parents=True)
    for name in ("1.jpg", ".hidden"):
        (folder / name).touch()
    assert inventory.file_flaw(asked, images) == "has 1 of 2 images"
    (folder / "2.jpg").touch()
    assert inventory.file_flaw(asked, images) is None


def test_a_file_of_another_length_is_found(tmp_path):
    file = next(file for file in web_files.FILES if file.name == "inception")
    asked = profile.configured("paper", inception=str(tmp_path / "i.pth"))
    (tmp_path / "i.pth").write_bytes(b"12")
    assert inventory.file_flaw(asked, file) == "has 2 of 95,628,359 bytes"
    assert inventory.file_flaw(asked, replace(file, bytes=2)) is None

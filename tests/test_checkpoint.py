"""Bad checkpoints and profiles are refused in one sentence; tokenizers and processors are read once."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from layouts import change, pickled
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BlipForConditionalGeneration

from dfl_utils.game.scorer import Scorer
from dfl_utils.models import captioner, checkpoint, similarity
from dfl_utils.models.generator import Generator, load_pipeline
from dfl_utils.store.store import RunStore
from dfl_utils.world import profile
from dfl_utils.world.data import Example
from dfl_utils.world.profile import MINI


def open_dino(folder):
    return similarity.load_dino(profile.load("mini", dino=str(folder)))


@pytest.mark.parametrize(
    ("lost", "sentence"),
    [
        ("unet", "stable-diffusion lacks a file, .*copy or download the checkpoint again"),
        ("text_encoder/model.safetensors", "stable-diffusion lacks a file, or has no .*pickles are not loaded"),
        ("scheduler/scheduler_config.json", "stable-diffusion lacks a file, .*scheduler_config.json"),
    ],
)
def test_a_missing_file_of_a_pipeline_is_refused(copy, lost, sentence):
    folder = copy("stable-diffusion")
    path = folder / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(FileNotFoundError, match=sentence):
        Generator.load(profile.load("mini", generator=str(folder)))


def test_a_folder_without_its_tokenizer_or_processor_is_refused(copy):
    for file in (folder := copy("stable-diffusion")).glob("tokenizer/*"):
        file.unlink()
    with pytest.raises(ValueError, match="tokenizer holds no tokenizer that is whole; copy or download the"):
        Generator.load(profile.load("mini", generator=str(folder)))
    for file in (folder := copy("clip")).glob("*processor*"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match="clip lacks a file.*; copy or download the checkpoint again"):
        similarity.load_clip(profile.load("mini", clip=str(folder)))


def test_a_missing_tensor_is_refused(copy):
    file = copy("dino") / "model.safetensors"
    weights = load_file(file)
    del weights["embeddings.position_embeddings"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lack embeddings.position_embeddings; copy or download the checkpoint"):
        similarity.load_dino(profile.load("mini", dino=str(file.parent)))
    change(file.with_name("config.json"), architectures=["ViTMAEModel"])  # a copy of the same would lack it too
    with pytest.raises(ValueError, match="its config.json names a ViTMAEModel, so give a checkpoint of a ViTModel"):
        similarity.load_dino(profile.load("mini", dino=str(file.parent)))


def test_half_written_weights_are_refused(copy):
    file = copy("dino") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="dino are damaged or half-written"):
        open_dino(file.parent)


def test_pickles_are_not_loaded(copy):
    folder = copy("dino")
    pickled(folder)
    with pytest.raises(FileNotFoundError, match="has no .*safetensors weights .pickles are not loaded"):
        open_dino(folder)


@pytest.mark.parametrize("name", ["spiece.model", "tokenizer.model", "sentencepiece.bpe.model"])
def test_a_tokenizer_of_pieces_wants_its_package(tmp_path, monkeypatch, name):
    (tmp_path / name).touch()
    monkeypatch.setattr(checkpoint, "find_spec", lambda package: None)
    with pytest.raises(ValueError, match=f"lies there as {name}, which the package sentencepiece reads"):
        checkpoint.load_tokenizer(str(tmp_path))


# --- files of weights -------------------------------------------------------------------------------------------


def test_the_captioner_alone_is_of_the_profiles_type():
    half = profile.load("mini", dtype="bfloat16", captioner=str(MINI / "blip-base"))
    model, _ = checkpoint.load(BlipForConditionalGeneration, half, "captioner")
    assert model.dtype == torch.bfloat16
    for judge in (similarity.load_dino(half).model, similarity.load_clip(half).model):
        assert judge.dtype == torch.float32


def shrink_vocabulary(folder, size, rows):
    """Cut an embedding table of `rows` rows to `size`, configuration and weights alike."""
    config = json.loads((folder / "config.json").read_text())
    (config.get("text_config") or config)["vocab_size"] = size
    (folder / "config.json").write_text(json.dumps(config))
    file = folder / "model.safetensors"
    cut = {name: w[:size].clone() if w.shape[:1] == (rows,) else w for name, w in load_file(file).items()}
    save_file(cut, file, metadata={"format": "pt"})


def test_a_judge_of_another_vocabulary_is_refused(copy, tmp_path):
    folder = copy("clip")
    shrink_vocabulary(folder, 40000, 49408)
    models = profile.load("mini", clip=str(folder))
    example = Example(0, tmp_path / "x.png", ("a dog",), None)
    with pytest.raises(ValueError, match="mixes two vocabularies"):
        Scorer(models, RunStore(tmp_path / "store"), [example]).score([example], [["a dog"]], ["CLIP-text"])


# --- tokenizers and processors ----------------------------------------------------------------------------------
@pytest.fixture
def fresh(monkeypatch):
    monkeypatch.setattr(checkpoint, "_known", {})  # nothing of other tests, and nothing left to them
    return profile.load("mini").pair(captioner="blip-base")


def test_a_copy_of_a_folder_shares_its_tokenizer_and_another_does_not(fresh, tmp_path):
    folder = Path(fresh.locate(fresh.captioner))
    copy = shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("*.safetensors"))
    first = checkpoint.load_tokenizer(str(folder))
    assert checkpoint.load_tokenizer(str(copy)) is first
    change(copy / "tokenizer_config.json", model_max_length=7)
    other = checkpoint.load_tokenizer(str(copy))
    assert other is not first and other.model_max_length == 7


def test_a_file_in_a_subfolder_decides_too(tmp_path):
    """As the second tokenizer of an InstructBLIP, which has a folder of its own."""
    (tmp_path / "model/qformer_tokenizer").mkdir(parents=True)
    part = tmp_path / "model/qformer_tokenizer/tokenizer.json"
    made = []
    for text in ("{}", "{}", '{"a": 1}'):
        part.write_text(text)
        made.append(checkpoint.shared("one of two", tmp_path / "model", object))
    assert made[0] is made[1] and made[1] is not made[2]


def test_a_tokenizer_is_what_transformers_reads(fresh):
    for folder in (fresh.locate(fresh.captioner), fresh.locate(fresh.clip)):
        shared, own = checkpoint.load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
        assert type(shared) is type(own) and shared.get_vocab() == own.get_vocab()
        assert shared("A red dog").input_ids == own("A red dog").input_ids


def test_models_of_one_vocabulary_share_it(fresh):
    drawn, trained = Generator.load(fresh).pipeline, load_pipeline(fresh)
    assert drawn.tokenizer is trained.tokenizer
    assert captioner.load(fresh).processor is captioner.load(fresh).processor is captioner.processor(fresh)

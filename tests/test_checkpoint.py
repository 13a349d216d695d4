"""Bad checkpoints and profiles are refused in one sentence; the paper's layout loads through the same code."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from layouts import fp16, pickled, rewrite, shard
from safetensors.torch import load_file, save_file
from transformers import BlipForConditionalGeneration

from dfl_utils.game.scorer import Scorer
from dfl_utils.models import captioner, checkpoint, similarity
from dfl_utils.models.generator import Generator
from dfl_utils.store import provenance
from dfl_utils.store.store import RunStore
from dfl_utils.world import profile
from dfl_utils.world.data import Example
from dfl_utils.world.profile import MINI


@pytest.fixture
def copy(tmp_path):
    """A copy of a shipped model that a test may damage."""

    def make(name):
        return shutil.copytree(MINI / name, tmp_path / name)

    return make


def open_dino(folder):
    return similarity.load_dino(profile.load("mini", dino=str(folder)))


def test_a_whole_checkpoint_is_registered(copy, monkeypatch):
    monkeypatch.setattr(provenance, "used", {})
    open_dino(copy("dino"))
    assert provenance.used["dino"]["how"] == "loaded"
    assert len(provenance.used["dino"]["sha256"]) == 64


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


def test_a_lost_tokenizer_is_refused(copy):
    folder = copy("stable-diffusion")
    (folder / "tokenizer/tokenizer.json").unlink()
    with pytest.raises((ValueError, OSError), match="okenizer"):
        Generator.load(profile.load("mini", generator=str(folder)))


def test_the_mend_is_a_command_that_works():
    with (
        pytest.raises(FileNotFoundError, match="git checkout -- data/paper` or rebuild"),
        checkpoint.opening(str(MINI.parent / "paper"), "dino"),
    ):
        pass


def test_a_missing_tensor_is_refused(copy):
    file = copy("dino") / "model.safetensors"
    weights = load_file(file)
    del weights["embeddings.position_embeddings"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lack embeddings.position_embeddings"):
        similarity.load_dino(profile.load("mini", dino=str(file.parent)))


def test_weights_of_another_size_are_refused(copy):
    folder = copy("dino")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))
    with pytest.raises(ValueError, match="do not fit its config.json"):
        similarity.load_dino(profile.load("mini", dino=str(folder)))


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


# --- files of weights -------------------------------------------------------------------------------------------
def test_a_lost_shard_is_refused(copy):
    file = copy("dino") / "model.safetensors"
    shard(file)[1].unlink()
    with pytest.raises(FileNotFoundError, match="model-00002-of-00002.safetensors"):
        open_dino(file.parent)


def test_half_precision_files_are_taken_where_they_lie_alone(copy):
    folder = copy("stable-diffusion")
    assert checkpoint.variant(str(folder)) is None
    fp16(folder, alone=False)
    assert checkpoint.variant(str(folder)) is None
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    assert checkpoint.variant(str(folder)) == "fp16"
    assert checkpoint.variant(str(folder / "unet")) is None
    assert checkpoint.variant(str(folder / "vae")) == "fp16"
    assert checkpoint.variant("owner/on-the-hub") is None


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


def test_a_captioner_of_another_vocabulary_is_refused(copy):
    folder = copy("blip-base")
    shrink_vocabulary(folder, 30522, 30524)  # BERT's own, without [DEC] and [ENC]
    with pytest.raises(ValueError, match="mixes two vocabularies .* has 30,524 tokens"):
        captioner.load(profile.load("mini", captioner=str(folder)))


def test_a_judge_of_another_vocabulary_is_refused(copy, tmp_path):
    folder = copy("clip")
    shrink_vocabulary(folder, 40000, 49408)
    models = profile.load("mini", clip=str(folder))
    example = Example(0, tmp_path / "x.png", ("a dog",), None)
    with pytest.raises(ValueError, match="mixes two vocabularies"):
        Scorer(models, RunStore(tmp_path / "store"), [example]).score([example], [["a dog"]], ["CLIP-text"])


def test_the_old_names_of_an_autoencoders_attention_are_read(copy):
    """Stable Diffusion v1-4 was published before diffusers named the parts of attention as it does today."""
    folder = copy("stable-diffusion")
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKL(block_out_channels=(8,) * 4, latent_channels=8, norm_num_groups=8, **blocks)
    vae.save_pretrained(folder / "vae")
    models = profile.load("mini", generator=str(folder), num_inference_steps=1)
    images = Generator.load(models).draw(["a cat"], [0])
    old = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    rewrite(file, lambda name: next((name.replace(new, was) for new, was in old.items() if new in name), name))
    assert sum(name.endswith("proj_attn.weight") for name in load_file(file)) == 2
    np.testing.assert_array_equal(Generator.load(models).draw(["a cat"], [0]), images)

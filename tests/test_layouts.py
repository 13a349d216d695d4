"""The same model in every layout that real repositories use gives the same outputs, bit for bit, by our own loaders."""

import pickle
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import layouts
import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoTokenizer, CLIPModel

from dfl_utils.models import captioner, checkpoint, similarity
from dfl_utils.models.generator import Generator, load_decoder, truncated
from dfl_utils.scores import embeddings
from dfl_utils.store import provenance
from dfl_utils.world import profile
from dfl_utils.world.profile import MINI

FIELDS = {"blip-base": "captioner", "blip2": "captioner", "stable-diffusion": "generator", "amused": "generator"}
SHIPPED = {"tiny_decoder": "taesd"}
PROMPTS = {"blip-base": "a picture of", "blip2": "a photo of"}
TEXTS = ["A red key left of a small house", "don't, naïve café: 10 skateboards!!", ""]
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 50, 50, 3), dtype=np.uint8)
IMAGES = [Image.fromarray(image) for image in PIXELS]


# --- what a model makes, by the project's loaders -----------------------------------------------------------
def outputs(name: str, folder: str | Path, **fields: object) -> list:
    """Everything that the book asks of a model, of the one in `folder` (or of that hub id)."""
    given = {FIELDS.get(name, name): str(folder), "scheduler": "DDPMScheduler"}
    models = profile.load("mini", **given, num_inference_steps=2, **fields)
    if name in PROMPTS:
        made = captioner.load(profile.load("mini", captioner=str(folder), captioner_prompt=PROMPTS[name], **fields))
        streams = [[(0, 0), (0, 1)], [(1, 0), (1, 1)]]
        texts = made.sample(IMAGES, streams), made.describe(IMAGES)
        return [*texts, made.log_likelihood(IMAGES, [TEXTS[:2]] * 2).tolist()]
    if name in ("stable-diffusion", "amused"):
        drawn = Generator.load(models).draw(TEXTS[:2], [0, 1])
        return [drawn.tolist(), truncated(models, ["a very long caption " * 20, *TEXTS])]
    if name == "tiny_decoder":
        latents = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
        return [load_decoder(models).decode(latents).sample.tolist()]
    found = [similarity.ENCODERS[name](models).embed(IMAGES).tolist()]
    if name == "clip":
        model, place = checkpoint.load(CLIPModel, models, "clip")
        tokenizer = AutoTokenizer.from_pretrained(place, revision=models.revision(place))
        found += [embeddings.clip_encoder(model, tokenizer)(TEXTS).tolist()]
    return found


@cache
def shipped(name: str) -> list:
    return outputs(name, MINI / SHIPPED.get(name, name))


# --- layouts ------------------------------------------------------------------------------------------------
def old_blip(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    head = "text_decoder.cls.predictions."
    tied = {
        f"{head}decoder.weight": state["text_decoder.bert.embeddings.word_embeddings.weight"].clone(),
        f"{head}decoder.bias": state[f"{head}bias"].clone(),
        "text_decoder.bert.embeddings.position_ids": layouts.positions(48),
    }
    layouts.rewrite(folder / "model.safetensors", extra=tied)
    layouts.old_config(folder)
    layouts.word_pieces(folder)
    layouts.old_processor(folder, "BlipImageProcessor")


def old_blip2(folder: Path) -> None:
    file = folder / "model.safetensors"
    tokens = load_file(file)["language_model.model.decoder.embed_tokens.weight"]
    layouts.shard(file, {"language_model.lm_head.weight": tokens.clone()})
    layouts.old_config(folder)
    layouts.byte_pairs(folder, "GPT2Tokenizer", layouts.OPT_NAMES, 64, ("<image>",))
    layouts.change(folder / "tokenizer_config.json", add_bos_token=True)
    layouts.old_processor(folder, "BlipImageProcessor")


def old_stable_diffusion(folder: Path) -> None:
    layouts.safety_checker(folder, present=True)
    layouts.old_scheduler(folder, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    part = folder / "text_encoder"
    buffer = {"text_model.embeddings.position_ids": layouts.positions(32)}
    layouts.rewrite(part / "model.safetensors", lambda name: f"text_model.{name}", buffer)
    layouts.old_config(part, **layouts.OLD_CLIP)
    layouts.byte_pairs(folder / "tokenizer", "CLIPTokenizer", layouts.CLIP_NAMES, 32)


LAYOUTS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "BLIP, old files": ("blip-base", old_blip),
    "BLIP-2, old files in shards": ("blip2", old_blip2),
    "SD, old files": ("stable-diffusion", old_stable_diffusion),
    "SD, fp16 beside": ("stable-diffusion", lambda folder: layouts.fp16(folder, alone=False)),
    "SD, fp16 alone": ("stable-diffusion", lambda folder: layouts.fp16(folder, alone=True)),
    "SD, its U-Net alone in fp16": ("stable-diffusion", lambda folder: layouts.fp16(folder / "unet", alone=True)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_changes_no_output(layout, copy):
    name, change = LAYOUTS[layout]
    folder = copy(name)
    change(folder)
    assert provenance.checkpoint_hash(folder) != provenance.checkpoint_hash(MINI / name)
    assert outputs(name, folder) == shipped(name)


# --- what the published models do and the embedded ones do not -------------------------------------------------
def test_clip_crops_what_is_not_square(copy):
    """The published CLIP brings the shorter side to its size and cuts the middle out."""
    folder = copy("clip")
    layouts.old_processor(folder, "CLIPImageProcessor")
    crop = {"do_center_crop": True, "crop_size": {"height": 64, "width": 64}, "size": {"shortest_edge": 64}}
    layouts.change(folder / "preprocessor_config.json", **crop)
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (50, 100, 3), dtype=np.uint8))
    middle = image.resize((128, 64), Image.Resampling.BICUBIC).crop((32, 0, 96, 64))
    found = similarity.load_clip(profile.load("mini", clip=str(folder))).embed([image])
    np.testing.assert_array_equal(found, similarity.load_clip(profile.load("mini")).embed([middle]))


def test_captions_of_blip2_end_in_a_newline(copy):
    """Its published configuration says so, whatever its tokenizer's own end is."""
    folder = copy("blip2")
    newline = layouts.read(folder / "tokenizer.json")["model"]["vocab"]["Ċ"]
    text = layouts.read(folder / "config.json")["text_config"]
    layouts.old_config(folder, text_config=text | {"eos_token_id": newline})
    made = captioner.load(profile.load("mini", captioner=str(folder), captioner_prompt="a photo of"))
    assert made.end_token_id == newline != made.processor.tokenizer.eos_token_id
    assert made._caption_ids("a red key")[-1] == newline
    captions = made.describe(IMAGES)
    assert all(caption and "\n" not in caption for caption in captions)


# --- pickles ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["blip2", "stable-diffusion"])
def test_pickles_that_lie_beside_are_not_opened(name, copy, tmp_path):
    folder = copy(name)
    assert layouts.traps(folder, tmp_path / "sprung") >= 4
    assert outputs(name, folder) == shipped(name)
    assert not (tmp_path / "sprung").exists()
    pickle.loads((folder / "pytorch_model.bin").read_bytes())  # so they would have told
    assert (tmp_path / "sprung").exists()


# --- mirrors and the hub's cache ------------------------------------------------------------------------------
@pytest.fixture
def cut_off(tmp_path, monkeypatch):
    """A hub's cache of the test's own, and no way to the hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(provenance, "used", {})
    return tmp_path / "cache"


IDS = {
    "dino": "facebook/dino-vitb8",
    "blip2": "Salesforce/blip2-opt-2.7b-coco",
    "clip": "openai/clip-vit-large-patch14",
}
IDS |= {"stable-diffusion": "CompVis/stable-diffusion-v1-4", "tiny_decoder": "madebyollin/taesd"}
COMMIT, OTHER = "0123456789abcdef" * 2 + "01234567", "f" * 40


@pytest.mark.parametrize("name", IDS)
def test_a_pinned_snapshot_of_the_cache_is_the_model(name, copy, cut_off):
    """As `snapshot_download` leaves it; the repository's current revision is another, and broken."""
    folder = copy(SHIPPED.get(name, name))
    if name == "stable-diffusion":
        layouts.safety_checker(folder, present=False)  # of a repository that names one, `dfl fetch` leaves it out
    snapshot = layouts.hub_cache(cut_off, IDS[name], folder, COMMIT)
    for file in layouts.weights(folder):
        file.write_bytes(b"of another day")
    layouts.hub_cache(cut_off, IDS[name], folder, OTHER, main=True)
    online = {"offline": False, "revisions": {IDS[name]: COMMIT}}
    found = outputs(name, IDS[name], **online)
    stamped = provenance.checkpoints()[{"tiny_decoder": "tiny decoder"}.get(name, FIELDS.get(name, name))]
    assert stamped["path"] == IDS[name] and stamped["sha256"] == provenance.checkpoint_hash(snapshot)
    assert found == shipped(name)


def test_a_mirror_is_the_model_and_needs_no_pin(tmp_path):
    shutil.copytree(MINI / "dino", tmp_path / IDS["dino"])
    fields = {"offline": False, "models_root": tmp_path, "revisions": {IDS["dino"]: COMMIT}}
    assert outputs("dino", IDS["dino"], **fields) == shipped("dino")


def test_what_the_cache_lacks_is_said_in_one_sentence(cut_off):
    models = profile.load("mini", offline=False, dino=IDS["dino"], revisions={IDS["dino"]: COMMIT})
    with pytest.raises(OSError, match=f"dino-vitb8 lacks a file at revision {COMMIT}, .*dfl fetch") as caught:
        similarity.load_dino(models)
    assert "\n" not in str(caught.value)

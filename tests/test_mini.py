"""The embedded models: exact resume, losses beside the libraries', targets and labels by hand, what they can do."""

import json
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AmusedPipeline, AutoencoderTiny, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPModel

from dfl_utils.mini import (
    architectures,
    autoencoder,
    blip2,
    captioning,
    discrete,
    grounding,
    judges,
    pretrain,
    quality_report,
    tiny_autoencoder,
    web,
)
from dfl_utils.mini.training import Schedule, Training
from dfl_utils.models import similarity
from dfl_utils.store import provenance
from dfl_utils.world import scenes, splits
from dfl_utils.world.profile import MINI

PSNR_BAR = 25.0  # dB, against the originals and against the real decoder; written down at step 350 of 3,600, at 20 dB
WRONG_SCALE = 6.0  # dB that latents of another scale must lose at least


# --- training ---------------------------------------------------------------------------------------------
def regression(folder, until=None):
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    carried = {"seen": torch.zeros(1)}

    def loss(step):
        carried["seen"] += 1
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        return (model(x) - x[:, :3]).square().mean(), {}

    training = Training(folder, model, loss, Schedule(60, lr=1e-2, warmup=5), carried).run(until)
    return model, training, carried


def test_resume_gives_the_same_weights_as_no_kill_and_a_finished_training_does_no_step(tmp_path):
    whole, _, seen = regression(tmp_path / "whole")
    regression(tmp_path / "cut", until=23)
    (tmp_path / "cut" / "state.partial").write_bytes(b"cut off")  # never replaces the old one
    for _ in range(2):
        resumed, training, seen_again = regression(tmp_path / "cut")
        assert training.step == 60
        assert seen == seen_again == {"seen": torch.tensor([60.0])}  # as it was checkpointed
        for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
            assert torch.equal(a, b)


def test_a_stage_refuses_new_foundations(tmp_path):
    for name in ("autoencoder", "clip"):
        (tmp_path / name / "final").mkdir(parents=True)
        save_file({"w": torch.zeros(1)}, tmp_path / name / "final" / "model.safetensors")
    pretrain.check_upstream("unet", tmp_path)
    pretrain.check_upstream("unet", tmp_path)  # unchanged: goes on
    note = tmp_path / "unet" / "upstream.json"
    note.write_text(json.dumps(json.loads(note.read_text()) | {"clip": "another"}))
    with pytest.raises(ValueError, match="autoencoder or clip changed since unet began: delete"):
        pretrain.check_upstream("unet", tmp_path)


# --- captioners -------------------------------------------------------------------------------------------
def test_restricted_head_equals_the_models_own_loss(monkeypatch):
    monkeypatch.setattr(architectures, "used_tokens", partial(architectures.used_tokens, sample=1000))
    torch.manual_seed(0)
    model, tokenizer = architectures.blip("base"), architectures.bert_tokenizer()
    head = captioning.RestrictedHead(model, tokenizer)
    batch = [scenes.sample(f"test/{k}") for k in range(3)]
    images = autoencoder.pixels([scenes.render(scene) for scene in batch])
    texts = [scenes.web_caption(scene, "test") for scene in batch]
    tokens = tokenizer([f"{architectures.PROMPT} {text}" for text in texts], padding=True, return_tensors="pt")
    ids = tokens.input_ids.clone()
    ids[:, 0] = tokenizer.bos_token_id
    labels = ids.masked_fill(tokens.attention_mask == 0, -100)
    labels[:, :4] = -100  # [DEC] a picture of
    full = model(pixel_values=images, input_ids=ids, attention_mask=tokens.attention_mask, labels=labels).loss
    torch.testing.assert_close(head.loss(images, texts), full, atol=1e-4, rtol=0)


@pytest.fixture
def shipped_tokenizer(monkeypatch):
    """Learning the vocabulary anew from 414,113 captions takes half a minute."""
    tokenizer = AutoTokenizer.from_pretrained(MINI / "blip2")
    monkeypatch.setattr(blip2, "tokenizer", lambda: tokenizer)
    return tokenizer


def test_captions_end_and_prompt_and_padding_are_no_targets(shipped_tokenizer):
    end, pad = shipped_tokenizer.eos_token_id, shipped_tokenizer.pad_token_id
    ids, mask, targets = blip2.tokens(["a red key", "a key"], "a photo of")
    head = shipped_tokenizer("a photo of").input_ids
    assert head[0] == shipped_tokenizer.bos_token_id == end
    assert ids[1].tolist() == [*head, *shipped_tokenizer(" a key", add_special_tokens=False).input_ids, end, pad]
    assert mask[1].tolist() == [1] * (len(head) + 3) + [0]
    assert targets[1].tolist() == [-100] * len(head) + ids[1, len(head) : -1].tolist() + [-100]
    for text in ("a red key left of a small house", "ein grünes Häuschen", "naïve café"):  # and it reads any text back
        ids = shipped_tokenizer(f" {text}", add_special_tokens=False).input_ids
        assert shipped_tokenizer.decode(ids) == f" {text}"


# --- judges -----------------------------------------------------------------------------------------------
def test_labels_by_hand():
    scene = scenes.Scene((scenes.Thing("dog", "red", "small", 5, 0),), "gray", None)
    labels = grounding.patch_labels(scene).reshape(3, 8, 8)
    assert (labels[0] == 1).sum() == 9
    assert labels[0, 2, 7] == 1 and labels[0, 3, 7] == 0
    assert set(labels[2].ravel()) == {tuple(scenes.GROUNDS).index("gray")}
    things = (scenes.Thing("cat", "blue", "small", 0, 0), scenes.Thing("ghost", "blue", "small", 4, 0))
    labels = judges.probe_labels(scenes.Scene(things, "white", "beside"))
    assert labels.shape == (59,) and labels.sum() == 4  # cat, ghost, blue, two
    assert labels[scenes.CATEGORIES.index("ghost")] == 1 and labels[-2] == 1


@pytest.fixture(scope="module")
def items():
    return list(splits.items("coco", "val"))[:64]


def test_clip_similarity_is_the_librarys(mini, items):
    pictures = [Image.fromarray(scenes.render(item.scene)) for item in items[:6]]
    model = CLIPModel.from_pretrained(mini.clip, dtype=torch.float32).eval()
    encoder = similarity.load_clip(mini)
    pixels = encoder.processor(pictures, return_tensors="pt").pixel_values
    with torch.no_grad():
        theirs = model(pixel_values=pixels, input_ids=torch.tensor([[49406, 49407]])).image_embeds
    np.testing.assert_allclose(encoder.embed(pictures), theirs.numpy(), atol=1e-5)
    originals = np.array([[1.0, 0.0], [0.6, 0.8]])
    candidates = np.array([[[1.0, 0.0], [0.0, 1.0]], [[0.8, 0.6], [-0.6, -0.8]]])
    np.testing.assert_allclose(similarity.cosine(originals, candidates), [[1, 0], [0.96, -1]])


# --- generators -------------------------------------------------------------------------------------------
def psnr(a: Tensor, b: Tensor) -> float:
    """Of images in [-1, 1]."""
    return -10 * torch.log10((a.clamp(-1, 1) - b.clamp(-1, 1)).square().mean() / 4).item()


@pytest.fixture(scope="module")
def tiny() -> AutoencoderTiny:
    return AutoencoderTiny.from_pretrained(MINI / "taesd", dtype=torch.float32).requires_grad_(False)


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(MINI / "stable-diffusion", dtype=torch.float32)


@pytest.fixture(scope="module")
def images(items) -> Tensor:
    return autoencoder.pixels([scenes.render(item.scene) for item in items])


@pytest.fixture(scope="module")
def latents(pipeline, images) -> Tensor:
    with torch.no_grad():
        return pipeline.vae.encode(images).latent_dist.mean * pipeline.vae.config.scaling_factor


def test_the_tiny_decoder_is_of_latents_of_this_autoencoder_at_this_scale(tiny, pipeline, latents, images):
    right = psnr(tiny.decode(latents).sample, images)
    assert right > PSNR_BAR
    unscaled = tiny.decode(latents / pipeline.vae.config.scaling_factor).sample
    shuffled = tiny.decode(latents.roll(1, dims=1)).sample
    assert psnr(unscaled, images) < right - WRONG_SCALE
    assert psnr(shuffled, images) < right - WRONG_SCALE


def test_of_one_step_estimates_it_makes_what_the_real_decoder_makes(tiny, pipeline, items, latents, images):
    texts, stream = [item.captions[0] for item in items], torch.Generator().manual_seed(0)
    asked = latents, texts, pipeline.text_encoder
    estimates = tiny_autoencoder.one_step_estimates(*asked, pipeline.unet, stream)
    with torch.no_grad():
        theirs = pipeline.vae.decode(estimates / pipeline.vae.config.scaling_factor).sample
    ours = tiny.decode(estimates).sample
    assert psnr(ours, theirs) > PSNR_BAR
    assert psnr(ours, theirs) > psnr(ours, images)  # it copies, it does not denoise
    known = torch.randn(latents.shape, generator=torch.Generator().manual_seed(3))
    told = tiny_autoencoder.one_step_estimates(
        *asked, lambda *_: SimpleNamespace(sample=known), torch.Generator().manual_seed(3)
    )
    torch.testing.assert_close(told, latents, atol=1e-4, rtol=0)  # where the U-Net knows the noise


@pytest.fixture(scope="module")
def amused() -> AmusedPipeline:
    return AmusedPipeline.from_pretrained(MINI / "amused", dtype=torch.float32)


def test_like_patches_have_the_same_code():
    """Plain ground has one code wherever it lies: what the codes around it show is no part of it."""
    batch = [web.scene(k, "second") for k in range(4)]
    patches = np.concatenate([discrete._patches(scenes.render(scene)) for scene in batch])
    distinct, which = np.unique(patches, axis=0, return_inverse=True)
    codes = discrete.codes_of(batch, torch.from_numpy(distinct).float() / 127.5 - 1)
    assert torch.equal(codes.flatten(), torch.from_numpy(which.ravel()))
    plain = (distinct.reshape(-1, 64, 3).std(1) == 0).all(1).nonzero()[0]
    assert len(plain) <= len({scene.ground for scene in batch}) + len({t.colour for s in batch for t in s.things})


def test_the_conditions_of_training_are_those_of_the_pipeline(amused, monkeypatch):
    seen = {}

    def record(input_ids, micro_conds, **_):
        seen["conditions"] = micro_conds
        return torch.zeros(len(input_ids), discrete.CODES, 8, 8)

    monkeypatch.setattr(amused.transformer, "forward", record)
    amused(["a red key"], num_inference_steps=1, guidance_scale=0.0, output_type="np")
    assert torch.equal(seen["conditions"], discrete.micro_conditions(1))


# --- how their quality is counted -------------------------------------------------------------------------
def test_naming_by_hand():
    assert quality_report.named("a small red puppy left of an airplane, blue t-shirt") == [
        *(("dog", "red"), ("plane", None), ("shirt", "blue"))
    ]

    def item(*things):
        placed = [scenes.Thing(name, colour, "small", 4 * k, 0) for k, (name, colour) in enumerate(things)]
        return splits.Item(0, "seed", splits.SPLITS[0], scenes.Scene(tuple(placed), "white", "beside"), ("a",))

    truth = [item(("dog", "red"), ("plane", "blue")), item(("cat", "black"))]
    scores = quality_report.naming(["a red puppy and a green plane", "a black dog"], truth)
    assert scores == {"precision": 2 / 3, "recall": 2 / 3, "colour": 1 / 2}


def test_what_is_shipped_does_not_say_where_it_was_trained(tmp_path):
    with pretrain._replaced(tmp_path / "sd") as folder:
        (folder / "unet").mkdir()
        (folder / "unet/config.json").write_text('{"_name_or_path": "/home/anne/training", "act_fn": "silu"}')
    assert json.loads((tmp_path / "sd/unet/config.json").read_text()) == {"act_fn": "silu"}


def test_the_measured_quality_is_that_of_the_shipped_checkpoints():
    report = json.loads((MINI / "quality.json").read_text(encoding="utf-8"))
    shipped = {name: provenance.checkpoint_hash(MINI / name) for name in quality_report.MODELS}
    assert report["checkpoints"] == shipped, "run `dfl quality` and commit data/mini/quality.json"

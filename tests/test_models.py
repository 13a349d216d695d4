"""Captioner, generator, encoders and referee, on the shipped small models."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel, TopPLogitsWarper

from dfl_utils import profile, provenance, similarity
from dfl_utils.captioner import Captioner, SeededSampling
from dfl_utils.generator import Generator, truncated
from dfl_utils.mini import quality_report, scenes, splits
from dfl_utils.referee import Referee


@pytest.fixture(scope="module")
def mini():
    return profile.load("mini", num_inference_steps=3)


@pytest.fixture(scope="module")
def items():
    return list(splits.items("coco", "test"))[:6]


@pytest.fixture(scope="module")
def images(items):
    return [Image.fromarray(scenes.render(item.scene)) for item in items]


@pytest.fixture(scope="module")
def captioner(mini):
    return Captioner.load(mini)


@pytest.fixture(scope="module")
def generator(mini):
    return Generator.load(mini)


def streams(images, candidates=3):
    return [[(0, image, n) for n in range(candidates)] for image in range(len(images))]


# --- sampling ----------------------------------------------------------------------------------------------
def drawn(probabilities, uniform, **options):
    scores = torch.tensor([probabilities]).log()
    out = SeededSampling(torch.tensor([[uniform]]), **options)(torch.zeros(1, 0), scores)
    return out.argmax().item()


def test_nucleus_by_hand():
    # p = 0.9 keeps 0.5, 0.3 and 0.15 (their sum passes 0.9), so uniforms are spread over a mass of 0.95.
    probabilities = [0.05, 0.5, 0.15, 0.3]
    assert drawn(probabilities, 0.52, top_p=0.9) == 1  # 0.494 < 0.5
    assert drawn(probabilities, 0.53, top_p=0.9) == 3  # 0.5035
    assert drawn(probabilities, 0.85, top_p=0.9) == 2  # 0.8075
    assert drawn(probabilities, 0.999, top_p=0.9) == 2  # the token of 0.05 is cut off
    assert drawn(probabilities, 0.999, top_p=1.0) == 0


def test_top_k_and_temperature_by_hand():
    assert drawn([0.05, 0.5, 0.15, 0.3], 0.7, top_k=2) == 3  # 0.625 and 0.375 are left
    assert drawn([0.2, 0.8], 0.5, temperature=1.0) == 1
    assert drawn([0.2, 0.8], 0.75, temperature=1e6) == 0  # two equal halves, in order of their logits: 1, then 0


def test_nucleus_has_the_librarys_support():
    torch.manual_seed(0)
    scores = 3 * torch.randn(8, 2000)
    kept = TopPLogitsWarper(0.9)(None, scores.clone()).isfinite()
    seen = torch.zeros_like(kept)
    for uniform in torch.linspace(0, 0.9999, 3000):
        seen |= SeededSampling(uniform.expand(8, 1), top_p=0.9)(torch.zeros(8, 0), scores.clone()).isfinite()
    assert not (seen & ~kept).any()
    assert (seen & kept).sum() > 0.9 * kept.sum()  # a grid of 3,000 uniforms passes over the rarest


@pytest.mark.parametrize("wrong", [{"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}, {"temperature": 0.0}])
def test_impossible_sampling_is_refused(wrong):
    with pytest.raises(ValueError, match="Sampling needs"):
        SeededSampling(torch.zeros(1, 1), **wrong)


# --- captioner ---------------------------------------------------------------------------------------------
def test_a_caption_does_not_depend_on_its_batch(captioner, images):
    together = captioner.sample(images[:3], streams(images[:3]))
    alone = [
        captioner.sample([image], [seeds])[0] for image, seeds in zip(images[:3], streams(images[:3]), strict=True)
    ]
    swapped = captioner.sample(images[:3][::-1], streams(images[:3])[::-1])[::-1]
    assert together == alone == swapped
    assert len({text for row in together for text in row}) > 3


def test_captions_keep_to_the_word_limits_and_drop_the_prompt(captioner, images):
    rows = captioner.sample(images[:2], streams(images[:2], 8), temperature=3.0, top_p=1.0)
    for text in (text for row in rows for text in row):
        assert not text.startswith("a picture of") and "[SEP]" not in text and "[DEC]" not in text
        assert len(text.split()) <= captioner.max_words


def test_beam_search_equals_the_librarys(captioner, images):
    inputs = captioner.processor(images=images[:3], text=["a picture of"] * 3, return_tensors="pt")
    ids = captioner.model.generate(**inputs, num_beams=3, min_new_tokens=5, max_new_tokens=30, do_sample=False)
    theirs = [
        text.removeprefix("a picture of").strip()
        for text in captioner.processor.batch_decode(ids, skip_special_tokens=True)
    ]
    assert captioner.describe(images[:3], num_beams=3) == theirs


# --- generator ---------------------------------------------------------------------------------------------
def test_a_drawing_does_not_depend_on_its_batch(generator):
    captions, seeds = ["a red dog", "", "a blue cup on a gray background"], [5, 6, 7]
    together = generator.draw(captions, seeds).astype(int)
    alone = np.concatenate([generator.draw([c], [s]) for c, s in zip(captions, seeds, strict=True)]).astype(int)
    assert together.shape == (3, 64, 64, 3)
    assert np.abs(together - alone).max() <= 1  # batched matrix products round differently


def test_drawing_equals_the_pipeline_called_alone(generator):
    pipe, stream = generator.pipeline, torch.Generator().manual_seed(11)
    theirs = pipe(
        "a red dog",
        num_inference_steps=3,
        guidance_scale=generator.guidance_scale,
        height=64,
        width=64,
        generator=stream,
        output_type="np",
    ).images[0]
    ours = generator.draw(["a red dog"], [11])[0]
    assert np.abs(ours.astype(int) - (theirs * 255).round().astype(int)).max() <= 1


def test_seeds_and_captions_must_match(generator):
    with pytest.raises(ValueError, match="2 captions and 1 seeds"):
        generator.draw(["a", "b"], [1])


def test_nothing_to_draw_or_to_describe_is_refused(generator, captioner):
    with pytest.raises(ValueError, match="0 captions and 0 seeds"):
        generator.draw([], [])
    with pytest.raises(ValueError, match="0 images and 0 lists of seeds"):
        captioner.sample([], [])


def test_long_captions_are_counted(mini):
    assert truncated(mini, ["a red dog", "a red dog " * 20]) == 1


def test_the_profile_draws_at_the_guidance_that_was_measured_best(mini):
    report = json.loads((profile.MINI / "quality.json").read_text(encoding="utf-8"))
    assert mini.guidance_scale == report["rows"]["SD guidance"]["value"]


def test_the_measured_quality_is_that_of_the_shipped_checkpoints():
    report = json.loads((profile.MINI / "quality.json").read_text(encoding="utf-8"))
    shipped = {name: provenance.checkpoint_hash(profile.MINI / name) for name in quality_report.MODELS}
    assert report["checkpoints"] == shipped, "run `dfl quality` and commit data/mini/quality.json"


def test_every_bar_has_its_row():
    rows = json.loads((profile.MINI / "quality.json").read_text(encoding="utf-8"))["rows"]
    bars = {name: row["bar"] for name, row in rows.items() if row["bar"] is not None}
    assert len(bars) == 16
    assert all(row["met"] == (row["value"] >= row["bar"]) for row in rows.values() if row["bar"] is not None)


# --- encoders and referee ----------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["clip", "dino"])
def test_an_image_is_most_similar_to_itself(mini, images, name):
    encoder = similarity.ENCODERS[name](mini)
    embeddings = encoder.embed(images)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(embeddings[2:3], encoder.embed(np.asarray(images[2])[None]), atol=1e-5)
    cosines = similarity.cosine(embeddings, np.broadcast_to(embeddings, (len(images), *embeddings.shape)))
    assert (cosines.argmax(1) == np.arange(len(images))).all()


def test_clip_similarity_is_the_librarys(mini, images):
    model = CLIPModel.from_pretrained(mini.clip, dtype=torch.float32).eval()
    encoder = similarity.load_clip(mini)
    pixels = encoder.processor(images, return_tensors="pt").pixel_values
    with torch.no_grad():
        theirs = model(pixel_values=pixels, input_ids=torch.tensor([[49406, 49407]])).image_embeds
    np.testing.assert_allclose(encoder.embed(images), theirs.numpy(), atol=1e-5)


def test_cosine_by_hand():
    originals = np.array([[1.0, 0.0], [0.6, 0.8]])
    candidates = np.array([[[1.0, 0.0], [0.0, 1.0]], [[0.8, 0.6], [-0.6, -0.8]]])
    np.testing.assert_allclose(similarity.cosine(originals, candidates), [[1, 0], [0.96, -1]])


def test_the_referee_reads_clean_scenes(mini, items, images):
    referee = Referee.load(mini)
    pixels = np.stack([np.asarray(image) for image in images])
    truth = [[thing.category for thing in item.scene.things] for item in items]
    assert referee.categories_right(pixels, truth).mean() > 0.8
    assert not referee.categories_right(pixels, [["ghost"]] * len(items)).any()

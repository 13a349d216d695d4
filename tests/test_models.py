"""The profile's settings, its measured quality, the encoders and the referee, on the shipped small models."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel

from dfl_utils.mini import quality_report
from dfl_utils.models import similarity
from dfl_utils.models.fidelity import Referee
from dfl_utils.store import provenance
from dfl_utils.world import profile, scenes, splits


@pytest.fixture(scope="module")
def mini():
    return profile.load("mini")


@pytest.fixture(scope="module")
def items():
    return list(splits.items("coco", "test"))[:6]


@pytest.fixture(scope="module")
def images(items):
    return [Image.fromarray(scenes.render(item.scene)) for item in items]


def test_the_measured_quality_is_that_of_the_shipped_checkpoints():
    report = json.loads((profile.MINI / "quality.json").read_text(encoding="utf-8"))
    shipped = {name: provenance.checkpoint_hash(profile.MINI / name) for name in quality_report.MODELS}
    assert report["checkpoints"] == shipped, "run `dfl quality` and commit data/mini/quality.json"


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
    originals = np.array([[1.0, 0.0], [0.6, 0.8]])
    candidates = np.array([[[1.0, 0.0], [0.0, 1.0]], [[0.8, 0.6], [-0.6, -0.8]]])
    np.testing.assert_allclose(similarity.cosine(originals, candidates), [[1, 0], [0.96, -1]])


def test_the_referee_reads_clean_scenes(mini, items, images):
    referee = Referee.load(mini)
    pixels = np.stack([np.asarray(image) for image in images])
    truth = [[thing.category for thing in item.scene.things] for item in items]
    assert referee.categories_right(pixels, truth).mean() > 0.8
    assert not referee.categories_right(pixels, [["ghost"]] * len(items)).any()

"""EfficientNet-Lite0, the judge that learned from photographs, on the 20 of ImageNet's in the wheel foolbox."""

from importlib.metadata import files

import numpy as np
import pytest
import torch
from PIL import Image

from dfl_utils.models import similarity
from dfl_utils.world import profile


@pytest.fixture(scope="module")
def photographs():
    """Each with its label, which its file is named by."""
    paths = [file.locate() for file in files("foolbox") if file.match("data/imagenet_*.jpg")]
    return [(Image.open(path).convert("RGB"), int(path.stem.split("_")[-1])) for path in sorted(paths)]


@pytest.fixture(scope="module")
def encoder():
    return similarity.load_efficientnet(profile.PROFILES["mini"])


def right(encoder, photographs, pixels):
    """How many labels are the first, and among the first five."""
    with torch.no_grad():
        ranked = encoder.model(pixel_values=pixels).logits.argsort(descending=True)
    places = [row.tolist().index(label) for row, (_, label) in zip(ranked, photographs, strict=True)]
    return sum(place == 0 for place in places), sum(place < 5 for place in places)


def test_it_knows_photographs(encoder, photographs):
    images = [image for image, _ in photographs]
    assert len(images) == 20
    assert right(encoder, photographs, encoder.processor(images, return_tensors="pt").pixel_values) == (17, 20)
    # 256 to 224 pixels, and the mean and deviation of torchvision's models: how the weights were checked elsewhere
    parts = np.stack(
        [np.asarray(image.resize((256, 256), Image.Resampling.BICUBIC))[16:240, 16:240] for image in images]
    )
    pixels = (torch.from_numpy(parts) / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    assert right(encoder, photographs, pixels.permute(0, 3, 1, 2)) == (15, 19)


def test_what_is_compared_stands_before_the_last_layer(encoder, photographs):
    image = photographs[0][0]
    unit = torch.from_numpy(encoder.embed([image]))
    assert unit.shape == (1, 1280) and unit.norm().item() == pytest.approx(1, abs=1e-6)
    with torch.no_grad():
        pixels = encoder.processor([image], return_tensors="pt").pixel_values
        features = encoder._features(pixels)
        torch.testing.assert_close(encoder.model.timm_model.classifier(features), encoder.model(pixels).logits)

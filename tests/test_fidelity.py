"""Fidelity extractors: parity with torch-fidelity and the referee, bad input, the pickle that is not opened;
EfficientNet-Lite0 on the 20 photographs of ImageNet in the wheel foolbox.
"""

from dataclasses import replace
from importlib.metadata import files
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity
from layouts import Trap
from PIL import Image
from torch.utils.data import Dataset
from torch_fidelity import FeatureExtractorInceptionV3, feature_extractor_inceptionv3

from dfl_utils.models import fidelity, similarity
from dfl_utils.models.fidelity import Referee
from dfl_utils.scores import image_sets
from dfl_utils.world import profile


class Pictures(Dataset):
    def __init__(self, images: np.ndarray):
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, k: int) -> torch.Tensor:
        return self.images[k]


def patches(seed: int, count: int, high: int = 256) -> np.ndarray:
    """Pictures of 8 x 8 coloured squares."""
    squares = np.random.default_rng(seed).integers(high, size=(count, 8, 8, 3), dtype=np.uint8)
    return squares.repeat(8, axis=1).repeat(8, axis=2)


@pytest.fixture(scope="module")
def extractor(mini):
    return fidelity.load(mini)


def measured(weights: str, one: np.ndarray, two: np.ndarray, **options: object) -> dict[str, float]:
    options |= {"cuda": False, "cache": False, "verbose": False, "save_cpu_ram": True}
    options |= {"kid_subsets": 1, "kid_subset_size": len(one), "feature_extractor_weights_path": weights}
    sides = {"input1": Pictures(one), "input2": Pictures(two)}
    return torch_fidelity.calculate_metrics(feature_extractor="inception-v3-compat", **sides, **options)


def test_the_probe_is_the_referees_whatever_the_batch(mini, extractor, monkeypatch):
    images = patches(2, 7)
    features = extractor.features(images)
    found = fidelity.split(features, mini)
    referee = Referee.load(mini)
    assert (found.pooled.shape, found.logits.shape) == ((7, 192), (7, 48))
    np.testing.assert_allclose(found.logits, referee.logits(images)[:, :48], atol=1e-4)
    classifier = referee.model.classifier[1]
    weight, bias = classifier.weight.numpy(), classifier.bias.numpy()
    np.testing.assert_allclose((found.pooled @ weight.T + bias)[:, :48], found.logits, atol=1e-4)
    monkeypatch.setattr(fidelity, "BATCH", 3)
    np.testing.assert_allclose(extractor.features(images[::-1])[::-1], features, atol=1e-4)


def test_pillow_images_are_resized_and_cropped_as_torch_fidelity_does_it(extractor, tmp_path):
    pictures = [Image.fromarray(image) for image in patches(4, 3)]
    np.testing.assert_array_equal(extractor.features(pictures), extractor.features(patches(4, 3)))
    wide = [picture.resize((150, 90)) for picture in pictures]
    for k, picture in enumerate(wide):
        picture.save(tmp_path / f"{k}.png")
    found = torch_fidelity.utils.prepare_input_from_id(
        1, input1=str(tmp_path), samples_resize_and_crop=64, verbose=False
    )
    theirs = np.stack([image.permute(1, 2, 0).numpy() for image in found])
    np.testing.assert_array_equal(extractor.features(wide), extractor.features(theirs))


def test_a_probe_that_is_not_there_or_broken_is_refused(mini):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        fidelity.load(replace(mini, probe="nowhere"))
    broken = Referee.load(mini)
    broken.model.classifier[1].bias.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="What is seen in an image by .*probe holds NaN or infinity"):
        broken.logits(patches(2, 1))


# --- Inception ----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    """A profile whose Inception has random weights."""
    file = tmp_path_factory.mktemp("inception") / "weights.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_extractor_inceptionv3, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        model = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    torch.save(model.state_dict(), file)
    return replace(profile.load("mini"), probe=None, inception=str(file))


def test_inception_is_torch_fidelitys(inception):
    one, two = patches(0, 3), patches(1, 3)
    assert fidelity.role(inception) == "inception"
    found = measured(inception.inception, one, two, kid=True, isc=True, isc_splits=1)
    extractor = fidelity.load(inception)
    ours, theirs = (fidelity.split(extractor.features(images), inception) for images in (one, two))
    assert (ours.pooled.shape, ours.logits.shape) == ((3, 2048), (3, 1008))
    assert found["kernel_inception_distance_mean"] == pytest.approx(
        image_sets.kid(ours.pooled, theirs.pooled), rel=1e-4
    )
    assert found["inception_score_mean"] == pytest.approx(image_sets.isc(ours.logits), rel=1e-5)


def test_inception_is_found_or_named(inception, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="is offline and has neither a probe.*set its field `inception`"):
        fidelity.load(replace(inception, inception=None))
    with pytest.raises(FileNotFoundError, match="now nowhere.pth"):
        fidelity.load(replace(inception, inception="nowhere.pth"))
    asked = []
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda url, **options: asked.append((url, options)))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    path = fidelity.weights(replace(inception, inception=None, offline=False))
    assert path == str(tmp_path / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth")
    assert asked[0][0].endswith(Path(path).name)
    assert asked[0][1]["weights_only"] and asked[0][1]["check_hash"]


def test_a_file_that_could_run_code_or_is_cut_short_is_refused_unopened(inception, tmp_path):
    (tmp_path / "half.pth").write_bytes(Path(inception.inception).read_bytes()[:1000])
    torch.save({"fc.weight": torch.zeros(1), "more": Trap(tmp_path / "sprung")}, tmp_path / "evil.pth")
    for name in ("half.pth", "evil.pth"):
        with pytest.raises(ValueError, match=f"{name} is no plain file of tensors"):
            fidelity.load(replace(inception, inception=str(tmp_path / name)))
    assert not (tmp_path / "sprung").exists()


# --- the judge that learned from photographs --------------------------------------------------------------------
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

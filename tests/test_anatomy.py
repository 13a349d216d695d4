"""One joint step taken apart: it is the step that is trained, and its gradients are where Appendix H wants them."""

import pytest
import torch
from torch.nn import functional as F

from dfl_utils.exhibits import diagrams
from dfl_utils.store.store import RunStore
from dfl_utils.training import anatomy, finetune, losses
from dfl_utils.training.finetuned import Finetuner
from dfl_utils.world import data, profile


@pytest.fixture(scope="module")
def finetuner(tmp_path_factory):
    models = profile.load("mini").pair(captioner="blip-base")
    data.ensure(models)
    examples = data.subset(data.load(models, "coco", "train"), 4, seed=0)
    return Finetuner(models, RunStore(tmp_path_factory.mktemp("store")), examples, progress=False)


@pytest.fixture(scope="module")
def recipe():
    return finetune.Recipe(steps=1, batch_size=3)


@pytest.fixture(scope="module")
def pair(finetuner, recipe):
    return finetuner.pair(recipe)


@pytest.fixture(scope="module")
def batch(finetuner, recipe, pair):
    return finetuner.pairs(*pair, recipe).batch(0)


@pytest.fixture(scope="module")
def found(finetuner, recipe):
    return anatomy.dissect(finetuner, recipe)


def test_the_walk_is_the_step_that_is_trained(pair, batch, found):
    tensors, words = anatomy.walk(pair[0], batch)
    targets = batch.caption.targets
    slow = {
        "caption_loss": F.cross_entropy(tensors["logits"], targets),
        "image_reconstruction_loss": F.mse_loss(tensors["noise prediction"], batch.noise),
        "generation_loss": F.mse_loss(tensors["noise prediction of the caption"], batch.noise),
        "text_reconstruction_loss": F.cross_entropy(tensors["logits of the decoded image"], targets),
    }
    with torch.no_grad():
        whole = pair[0](batch)
    for name in losses.LOSSES:
        assert slow[name].item() == pytest.approx(whole[name].item(), rel=1e-4)
        assert found.losses[name] == pytest.approx(whole[name].item(), rel=1e-4)
    assert found.shapes == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert found.told == words and len(words.split()) > 2


def test_shapes_fit_each_other(found, batch):
    shapes = found.shapes
    assert shapes["logits"][0] == shapes["distributions"][0] + 3  # the ends of three captions
    assert shapes["distributions"][0] == shapes["mapped embeds"][0] == sum(batch.caption.counts)
    assert shapes["encoder_hidden_states"] == shapes["encoder_hidden_states of the caption"]
    assert shapes["noisy latents"] == shapes["noise prediction"] == shapes["one-step latents"]
    assert {picture.shape for picture in found.pictures.values()} == {(64, 64, 3)}
    assert found.timestep == int(batch.timesteps[0])


def test_each_loss_reaches_what_appendix_h_says(found):
    assert found.reaches() == anatomy.REACHES
    assert found.gradients["caption_loss"]["generator"] == found.gradients["generation_loss"]["captioner"] == 0
    assert all(count > 0 for count in found.trained.values())


def test_of_micro_batches_the_first_is_taken_apart(finetuner, found):
    part = anatomy.dissect(finetuner, finetune.Recipe(steps=1, batch_size=3, micro_batches=3))
    assert part.shapes["noisy latents"] == (1, *found.shapes["noisy latents"][1:])
    assert part.caption == found.caption and part.timestep == found.timestep  # of the whole batch's first pair
    with pytest.raises(ValueError, match="joint step has the losses"):
        anatomy.dissect(finetuner, finetune.Recipe(losses=("caption_loss",), steps=1))


def test_the_diagrams_show_every_shape_and_every_loss(found):
    a, b = (
        "\n".join(text.get_text() for axis in draw(found).axes for text in axis.texts)
        for draw in (diagrams.image_text_image, diagrams.text_image_text)
    )
    for name, shape in found.shapes.items():
        assert " × ".join(f"{size:,}" for size in shape) in a + b, name
    for text, equations in ((a, (1, 2)), (b, (3, 4))):
        assert f"timestep {found.timestep}" in text
        assert all(f"{found.losses[losses.LOSSES[k - 1]]:.3g} (Eq. {k})" in text for k in equations)

"""The paper's models at their true shapes: counts, and what is trained."""

import published_models
import pytest
from torch import nn

from dfl_utils.training import finetune
from dfl_utils.training.finetune import TRAINED


@pytest.fixture(scope="module")
def built():
    """Each model once, for all tests."""
    return {name: published_models.on_meta(name) for name in published_models.SHAPES}


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# --- shapes without numbers -----------------------------------------------------------------------------------
@pytest.mark.parametrize("name", published_models.SHAPES)
def test_a_published_model_has_as_many_weights(built, name):
    known = published_models.SHAPES[name]
    assert all(parameter.is_meta for parameter in built[name].parameters())
    assert count(built[name]) == known.parameters
    if known.stated is not None:
        assert int(known.parameters / 1e6) in (known.stated - 1, known.stated)


# --- what is trained ------------------------------------------------------------------------------------------
class Pair(nn.Module):
    """As much of a pair as `unfreeze` looks at."""

    def __init__(self, model: nn.Module, unet: nn.Module):
        super().__init__()
        self.model, self.unet = model, unet


def trained(built, name: str) -> dict[str, dict[str, nn.Parameter]]:
    found = finetune.unfreeze(Pair(built[name], built["unet"]))
    assert all(parameter.requires_grad for parameter in found.values())
    roles = {role: {} for role in finetune.ROLES}
    for key, parameter in found.items():
        role, _, own = key.partition(".")
        roles[role][own] = parameter
    return roles


@pytest.mark.parametrize("name", ["blip-base", "blip-large"])
def test_of_blip_the_queries_of_the_cross_attention_are_trained(built, name):
    """A query projection of 768 x 768 and its bias in each of 12 layers: 7.09 M."""
    layer = "text_decoder.bert.encoder.layer.{}.crossattention.self.query.{}"
    found = trained(built, name)["captioner"]
    assert set(found) == {layer.format(k, part) for k in range(12) for part in ("weight", "bias")}
    assert sum(p.numel() for p in found.values()) == 12 * (768 * 768 + 768) == 7_087_104


def test_of_blip2_the_query_tokens_are_trained(built):
    found = trained(built, "blip2")["captioner"]
    assert {key: tuple(p.shape) for key, p in found.items()} == {"query_tokens": (1, 32, 768)}
    assert found["query_tokens"].numel() == 24_576


def test_of_stable_diffusion_the_queries_of_the_cross_attention_are_trained(built):
    """Two blocks of each of three sizes down, one in the middle, three up: 16 matrices, 12.39 M."""
    places = [f"down_blocks.{k}.attentions.{n}" for k in range(3) for n in range(2)] + ["mid_block.attentions.0"]
    places += [f"up_blocks.{k}.attentions.{n}" for k in range(1, 4) for n in range(3)]
    found = trained(built, "blip-base")["generator"]
    assert set(found) == {f"{place}.transformer_blocks.0.attn2.to_q.weight" for place in places}
    assert len(found) == 16
    widths = [320, 320, 640, 640, 1280, 1280, 1280, *[1280] * 3, *[640] * 3, *[320] * 3]
    assert sum(p.numel() for p in found.values()) == sum(width**2 for width in widths) == 12_390_400


def test_nothing_else_moves(built):
    pair = Pair(built["blip-large"], built["unet"])
    found = finetune.unfreeze(pair)
    assert {id(p) for p in pair.parameters() if p.requires_grad} == {id(p) for p in found.values()}
    assert set(TRAINED) == {"blip", "blip-2", "unet"}

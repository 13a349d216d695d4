"""The paper's models at their true shapes: counts, what is trained, and (`pytest -m full_size`) one real pass each."""

import shutil
from types import SimpleNamespace

import numpy as np
import published_models
import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from layouts import old_processor, read, word_pieces, write
from PIL import Image
from torch import nn

from dfl_utils.mini import architectures
from dfl_utils.models import captioner
from dfl_utils.models.generator import Generator
from dfl_utils.training import finetune, full_size
from dfl_utils.training.finetune import TRAINED
from dfl_utils.world import profile
from dfl_utils.world.profile import MINI

HEADER = 256 * 1024  # bytes of names, shapes and buffers of positions in a file of weights, at most


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


@pytest.mark.parametrize("name", [name for name, known in published_models.SHAPES.items() if known.bytes])
def test_the_weights_fill_the_published_file(name):
    known = published_models.SHAPES[name]
    header = known.bytes - 4 * (known.parameters + known.repeated)
    assert 0 < header < HEADER


def test_the_weights_of_blip2_fill_its_two_shards():
    known = published_models.SHAPES["blip2"]
    assert 4 * (known.parameters + known.repeated) == pytest.approx((10.0 + 5.5) * 1e9, rel=0.001)


def test_repeated_weights_are_tied(built):
    for name in ("blip-base", "blip-large", "blip2"):
        head = (
            built[name].get_output_embeddings() if name == "blip2" else built[name].text_decoder.cls.predictions.decoder
        )
        assert head.weight.numel() == published_models.SHAPES[name].repeated


def test_every_model_of_the_paper_profile_is_known():
    paper = profile.PROFILES["paper"]
    ids = {model for model, _ in paper.captioners.values()} | {model for model, *_ in paper.generators.values()}
    ids |= {paper.captioner, paper.generator, paper.clip, paper.dino, paper.tiny_decoder}
    assert ids == {known.id for known in published_models.SHAPES.values()}


def test_an_unknown_name():
    with pytest.raises(ValueError, match="no published model 'blip-huge': choose one of blip-base, blip-large"):
        published_models.on_meta("blip-huge")


def test_sizes_of_pictures(built):
    assert built["blip-base"].config.vision_config.image_size == full_size.BLIP_SIZE == 384
    assert (
        built["blip-large"].config.text_config.encoder_hidden_size
        == built["blip-large"].config.vision_config.hidden_size
    )
    assert built["blip2"].config.vision_config.image_size == 224
    side = built["unet"].config.sample_size * 2 ** (len(built["vae"].config.block_out_channels) - 1)
    assert side == built["vae"].config.sample_size == full_size.IMAGE_SIZE == profile.PROFILES["paper"].image_size
    dino = built["dino"].config
    assert profile.PROFILES["paper"].dino_size % dino.patch_size == 0 and dino.image_size == 224


def test_the_published_tokenizer_leaves_two_rows_of_blip_unnamed():
    """The cost of a step is counted beside it as beside our own, which names them [DEC] and [ENC]."""
    for tokens in (30522, 30524):
        own = SimpleNamespace(processor=SimpleNamespace(tokenizer=range(tokens)), prompt="", min_words=5, max_words=30)
        counted, pipeline, tiny = full_size.models(own, None)
        assert counted.model.config.text_config.vocab_size == 30524
        assert count(pipeline.unet) == published_models.SHAPES["unet"].parameters
        assert count(tiny) == published_models.SHAPES["tiny_decoder"].parameters


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


# --- one real pass, by request --------------------------------------------------------------------------------
# With one thread on a shared EPYC: BLIP 45 s of one core and 2.0 GB at most, Stable Diffusion 105 s and 6.1 GB.
@pytest.mark.full_size
def test_blip_base_captions_an_image_of_384_pixels(tmp_path):
    torch.manual_seed(0)
    folder = tmp_path / "blip-base"
    published_models.SHAPES["blip-base"].make().save_pretrained(folder)
    for name in ("tokenizer.json", "processor_config.json"):
        shutil.copyfile(MINI / "blip-base" / name, folder / name)
    word_pieces(folder)  # the published 30,522 tokens
    old_processor(folder, "BlipImageProcessor")
    settings = read(folder / "preprocessor_config.json")
    write(folder / "preprocessor_config.json", settings | {"size": {"height": 384, "width": 384}})
    blip = captioner.load(profile.load("mini", captioner=str(folder)))
    shutil.rmtree(folder)  # a gigabyte
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (375, 500, 3), dtype=np.uint8))
    assert blip.image_embeds([image]).shape == (1, 24 * 24 + 1, 768)
    rows = blip.sample([image], [[(0, 0), (0, 1)]])
    assert [len(row) for row in rows] == [2] and all(rows[0]) and blip.sample([image], [[(0, 0), (0, 1)]]) == rows
    assert blip.describe([image])[0]
    assert np.isfinite(blip.log_likelihood([image], [["a dog on a beach"]])).all()


@pytest.mark.full_size
def test_a_step_of_stable_diffusion_at_512_pixels():
    torch.manual_seed(0)
    text_encoder, unet, vae = (published_models.SHAPES[name].make().eval() for name in ("text_encoder", "unet", "vae"))
    tokenizer = architectures.clip_tokenizer()
    tokenizer.model_max_length = full_size.TOKENS
    settings = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDPMScheduler(**settings, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    passes = []
    unet.register_forward_hook(lambda _, inputs, output: passes.append((inputs[0].shape, output[0].shape)))
    generator = Generator(pipeline, num_inference_steps=1, guidance_scale=7.5, image_size=512)
    images = generator.draw(["a dog on a beach"], [0])
    assert images.shape == (1, 512, 512, 3) and images.dtype == np.uint8 and images.std() > 0
    assert passes == [((2, 4, 64, 64),) * 2]  # with and without the prompt

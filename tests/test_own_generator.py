"""Text-to-image pipelines beside the paper's: Stable Diffusion XL, a latent consistency model, PixArt; tiny, random."""

import copy
import inspect
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from dfl_utils.mini import architectures
from dfl_utils.models.generator import Generator, in_float32, truncated
from dfl_utils.world import profile

# Two schedulers read torch tensors by numpy in a way that numpy 2 will drop.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")
CAPTIONS, SEEDS = ["a red dog", "", "a blue cup on a gray background"], [5, 6, 7]
LAYERS = dict(block_out_channels=(8, 16), norm_num_groups=4)
UNET = dict(
    **LAYERS,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    sample_size=16,
    attention_head_dim=(2, 4),
)
NOISE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


def clip_config():
    size = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, projection_dim=16)
    marks = dict(bos_token_id=49406, eos_token_id=49407, pad_token_id=49407)
    return CLIPTextConfig(vocab_size=49408, max_position_embeddings=architectures.TEXT_LENGTH, **size, **marks)


def vae():
    parts = dict(down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)
    return AutoencoderKL(**LAYERS, **parts, latent_channels=4, sample_size=32)


def tiny_xl(folder):
    unet = UNet2DConditionModel(
        **UNET,
        cross_attention_dim=32,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
    )
    encoders = CLIPTextModel(clip_config()), CLIPTextModelWithProjection(clip_config())
    tokenizers = architectures.clip_tokenizer(), architectures.clip_tokenizer()
    scheduler = EulerDiscreteScheduler(**NOISE)
    StableDiffusionXLPipeline(vae(), *encoders, *tokenizers, unet, scheduler).save_pretrained(folder)


def tiny_lcm(folder):
    unet = UNet2DConditionModel(**UNET, cross_attention_dim=16, time_cond_proj_dim=16)
    parts = CLIPTextModel(clip_config()), architectures.clip_tokenizer(), unet, LCMScheduler(**NOISE)
    LatentConsistencyModelPipeline(vae(), *parts, None, None, requires_safety_checker=False).save_pretrained(folder)


def tiny_pixart(folder):
    transformer = PixArtTransformer2DModel(
        sample_size=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=3,
        cross_attention_dim=24,
        caption_channels=32,
        out_channels=8,
    )
    words = ["<pad>", "</s>", "<unk>", "▁a", "▁red", "▁dog", "▁blue", "▁cup", "▁on", "▁gray", "▁background", "▁"]
    vocabulary = [(word, -float(k)) for k, word in enumerate(words)]
    tokenizer = T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=32)
    config = T5Config(vocab_size=len(tokenizer) + 10, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    parts = tokenizer, T5EncoderModel(config), vae(), transformer, DPMSolverMultistepScheduler()
    PixArtAlphaPipeline(*parts).save_pretrained(folder)


MAKERS = {"xl": tiny_xl, "lcm": tiny_lcm, "pixart": tiny_pixart}
SCHEDULERS = {"xl": "EulerDiscreteScheduler", "lcm": "LCMScheduler", "pixart": "DPMSolverMultistepScheduler"}


@pytest.fixture(scope="module", params=MAKERS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def models(kind, tmp_path_factory):
    folder = tmp_path_factory.mktemp(kind)
    torch.manual_seed(0)
    MAKERS[kind](folder)
    return profile.load("mini", generator=str(folder), num_inference_steps=4, guidance_scale=3.0, image_size=32)


@pytest.fixture(scope="module")
def generator(models):
    return Generator.load(models)


def test_a_drawing_depends_on_its_caption_and_its_seed_alone(generator):
    together = generator.draw(CAPTIONS, SEEDS).astype(int)
    alone = np.concatenate([generator.draw([c], [s]) for c, s in zip(CAPTIONS, SEEDS, strict=True)]).astype(int)
    swapped = generator.draw(CAPTIONS[::-1], SEEDS[::-1])[::-1].astype(int)
    assert together.shape == (3, 32, 32, 3)
    assert max(np.abs(together - alone).max(), np.abs(together - swapped).max()) <= 1  # batches round differently
    first, seed, caption = generator.draw(["a red dog", "a red dog", "a blue cup"], [5, 6, 5])
    assert (first != seed).mean() > 0.2 and (first != caption).any()


def test_drawing_equals_the_pipeline_called_alone(generator, kind):
    size = dict(height=32, width=32, num_inference_steps=4, guidance_scale=3.0)
    literal = dict(clean_caption=False, use_resolution_binning=False) if kind == "pixart" else {}
    stream = torch.Generator().manual_seed(11)
    images = generator.pipeline("a red dog", generator=stream, output_type="np", **size, **literal).images
    ours = generator.draw(["a red dog"], [11])[0].astype(int)
    assert np.abs(ours - (images[0] * 255).round().astype(int)).max() <= 1


def test_other_pipelines_keep_their_scheduler(generator, kind):
    assert type(generator.pipeline.scheduler).__name__ == SCHEDULERS[kind]


def test_long_captions_are_counted_by_each_tokenizer(models):
    assert truncated(models, ["a red dog", "a red dog " * 20]) == 1


def test_a_tokenizer_of_another_vocabulary_is_refused(kind, models, generator, tmp_path):
    name = "tokenizer_2" if kind == "xl" else "tokenizer"
    folder = shutil.copytree(models.generator, tmp_path / "mixed")
    tokenizer = copy.deepcopy(getattr(generator.pipeline, name))
    tokenizer.add_tokens([f"<extra {k}>" for k in range(80)])
    tokenizer.save_pretrained(folder / name)
    with pytest.raises(ValueError, match="mixed mixes two vocabularies"):
        Generator.load(replace(models, generator=str(folder)))


def test_code_that_lies_in_a_pipeline_is_never_run(models, tmp_path):
    folder = shutil.copytree(models.generator, tmp_path / "pipeline")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "pipeline.py").write_text("raise SystemExit('it ran')")
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": ["pipeline", "Mine"]}))
    with pytest.raises(ValueError, match="is drawn by code that lies in it, which is never run: give another pipeline"):
        Generator.load(profile.load("mini", generator=str(folder)))


def test_stable_diffusion_takes_the_profiles_scheduler_and_type():
    drawn = {}
    for name in ("DDPMScheduler", "DDIMScheduler"):
        loaded = Generator.load(profile.load("mini", scheduler=name, num_inference_steps=2))
        assert type(loaded.pipeline.scheduler).__name__ == name
        drawn[name] = loaded.draw(["a red dog"], [1])
    assert (drawn["DDPMScheduler"] != drawn["DDIMScheduler"]).any()


@pytest.mark.parametrize("name", ["DDPMScheduler", "EulerAncestralDiscreteScheduler"])
def test_half_precision_is_the_same_drawing_rounded(name):
    """torch draws other noise of a seed in another type: first noise and that of every step are drawn in float32."""
    settings = {"scheduler": name, "num_inference_steps": 4}
    whole, half = (Generator.load(profile.load("mini", dtype=dtype, **settings)) for dtype in ("float32", "bfloat16"))
    assert half.pipeline.unet.dtype == torch.bfloat16
    shown, rounded, other = (
        loaded.draw(["a red dog"], [seed]).astype(int) for loaded, seed in ((whole, 1), (half, 1), (whole, 2))
    )
    assert np.abs(shown - rounded).mean() < 5 < np.abs(shown - other).mean()  # levels of 255


def test_a_scheduler_in_float32_hands_back_the_types_it_was_given():
    scheduler = in_float32(DDIMScheduler)()
    scheduler.set_timesteps(10)
    predicted, sample = torch.randn(2, 1, 4, 8, 8).to(torch.bfloat16)
    (prev, clean), named = (
        scheduler.step(predicted, 901, sample, return_dict=False),
        scheduler.step(predicted, 901, sample),
    )
    assert prev.dtype == clean.dtype == torch.bfloat16 and torch.equal(named.prev_sample, prev)
    plain = DDIMScheduler()
    plain.set_timesteps(10)
    expected = plain.step(predicted.float(), 901, sample.float()).prev_sample
    assert torch.equal(prev, expected.to(torch.bfloat16))
    assert "generator" in inspect.signature(scheduler.step).parameters  # or no pipeline would pass one


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"scheduler": "UNet2DModel"}, "scheduler is 'UNet2DModel', which is none of diffusers: give one such as DDPM"),
        ({"scheduler": "ddpm"}, "scheduler is 'ddpm', which is none of diffusers"),
        ({"dtype": "float16"}, "dtype is float16, which is for GPUs: set dtype='float32' with device='cpu'"),
        ({"dtype": "fp16"}, "dtype is 'fp16': choose one of float32, bfloat16, float16"),
    ],
)
def test_a_wrong_scheduler_or_type_is_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        Generator.load(profile.load("mini", **change))

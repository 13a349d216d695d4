"""Text-to-image pipelines: the shipped Stable Diffusion; aMUSEd; SDXL and PixArt, tiny."""

import functools
import shutil
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock

import diffusers
import numpy as np
import pytest
import torch
import transformers
from layouts import change

from dfl_utils.mini import architectures
from dfl_utils.models.generator import Generator, SeededAmusedScheduler, _without_checker, check, truncated
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
    return transformers.CLIPTextConfig(
        vocab_size=49408, max_position_embeddings=architectures.TEXT_LENGTH, **size, **marks
    )


def vae():
    parts = dict(down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)
    return diffusers.AutoencoderKL(**LAYERS, **parts, latent_channels=4, sample_size=32)


def tiny_xl(folder):
    unet = diffusers.UNet2DConditionModel(
        **UNET,
        cross_attention_dim=32,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
    )
    encoders = transformers.CLIPTextModel(clip_config()), transformers.CLIPTextModelWithProjection(clip_config())
    tokenizers = architectures.clip_tokenizer(), architectures.clip_tokenizer()
    scheduler = diffusers.EulerDiscreteScheduler(**NOISE)
    diffusers.StableDiffusionXLPipeline(vae(), *encoders, *tokenizers, unet, scheduler).save_pretrained(folder)


def tiny_pixart(folder):
    transformer = diffusers.PixArtTransformer2DModel(
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
    tokenizer = transformers.T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=32)
    config = transformers.T5Config(
        vocab_size=len(tokenizer) + 10, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2
    )
    parts = tokenizer, transformers.T5EncoderModel(config), vae(), transformer, diffusers.DPMSolverMultistepScheduler()
    diffusers.PixArtAlphaPipeline(*parts).save_pretrained(folder)


MAKERS = {"xl": tiny_xl, "pixart": tiny_pixart}
SCHEDULERS = {
    **{"stable-diffusion": "DDPMScheduler", "amused": "SeededAmusedScheduler"},
    **{"xl": "EulerDiscreteScheduler", "pixart": "DPMSolverMultistepScheduler"},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Profile of each kind, and its generator; made once."""

    @functools.cache
    def make(kind):
        models = profile.load("mini", num_inference_steps=2, guidance_scale=3.0)
        if kind in MAKERS:
            folder = tmp_path_factory.mktemp(kind)
            torch.manual_seed(0)
            MAKERS[kind](folder)
            models = replace(models, generator=str(folder), image_size=32)
        else:
            models = models.pair(generator=kind)
        return models, Generator.load(models)

    return make


@pytest.fixture(scope="module", params=SCHEDULERS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def models(made, kind):
    return made(kind)[0]


@pytest.fixture(scope="module")
def generator(made, kind):
    return made(kind)[1]


def test_a_drawing_depends_on_its_caption_and_its_seed_alone(generator):
    together = generator.draw(CAPTIONS, SEEDS).astype(int)
    alone = generator.draw(CAPTIONS[:1], SEEDS[:1]).astype(int)
    mixed = generator.draw([CAPTIONS[2], "a red dog", "a blue cup", CAPTIONS[0]], [7, 6, 5, 5]).astype(int)
    assert together.shape == (3, generator.image_size, generator.image_size, 3)
    again = np.stack([alone[0], mixed[3], mixed[0]])
    assert np.abs(again - together[[0, 0, 2]]).max() <= 1  # batches round differently
    _, seed, caption, first = mixed
    assert (first != seed).mean() > 0.2 and (first != caption).any()


def test_drawing_equals_the_pipeline_called_alone(generator, kind):
    size = dict(height=generator.image_size, width=generator.image_size)
    steps = dict(num_inference_steps=generator.num_inference_steps, guidance_scale=generator.guidance_scale)
    literal = dict(clean_caption=False, use_resolution_binning=False) if kind == "pixart" else {}
    stream = torch.Generator().manual_seed(11)
    image = generator.pipeline("a red dog", generator=stream, output_type="np", **size, **steps, **literal).images[0]
    ours = generator.draw(["a red dog"], [11])[0].astype(int)
    assert np.abs(ours - (image * 255).round().astype(int)).max() <= 1


def test_only_stable_diffusion_gets_the_papers_scheduler_and_long_captions_are_counted(generator, models, kind):
    assert type(generator.pipeline.scheduler).__name__ == SCHEDULERS[kind]
    assert truncated(models, ["a red dog", "a red dog " * 20]) == 1


# --- aMUSEd -----------------------------------------------------------------------------------------------
def test_each_image_has_its_stream_in_a_step_of_amused():
    """A batch is the parent's step of its samples one by one, after any number of steps."""
    torch.manual_seed(0)
    ours, theirs = SeededAmusedScheduler(mask_token_id=40), diffusers.AmusedScheduler(mask_token_id=40)
    streams = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    alone = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    batch = torch.full((2, 4, 4), 40)
    samples = list(batch.split(1))
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(3)
    for timestep in ours.timesteps:
        logits = torch.randn(2, 40, 4, 4)
        batch = ours.step(logits, timestep, batch, generator=streams).prev_sample
        samples = [
            theirs.step(logits[k : k + 1], timestep, samples[k], generator=alone[k]).prev_sample for k in range(2)
        ]
        assert (batch == torch.cat(samples)).all()
    assert (batch < 40).all()


def test_linear_layers_through_onednn_keep_their_outputs(made):
    models, amused = made("amused")
    plain = diffusers.AmusedPipeline.from_pretrained(models.generator, dtype=torch.float32).transformer
    codes, text, pooled = torch.randint(1025, (2, 8, 8)), torch.randn(2, 32, 128), torch.randn(2, 128)
    sizes = torch.tensor([[64.0, 64, 0, 0, 6]]).expand(2, -1)
    with torch.no_grad():
        ours, theirs = (model(codes, text, pooled, sizes) for model in (amused.pipeline.transformer, plain))
    assert 10 < theirs.abs().max() < 100
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)  # seen: 1.5e-5


# --- schedulers and types -----------------------------------------------------------------------------------


def test_half_precision_is_the_same_drawing_rounded():
    """torch draws other noise of a seed in another type: first noise and that of every step are drawn in float32."""
    settings = {"scheduler": "EulerAncestralDiscreteScheduler", "num_inference_steps": 4}
    whole, half = (Generator.load(profile.load("mini", dtype=dtype, **settings)) for dtype in ("float32", "bfloat16"))
    assert half.pipeline.unet.dtype == torch.bfloat16
    assert isinstance(whole.pipeline.scheduler, diffusers.EulerAncestralDiscreteScheduler)  # the profile's
    shown, rounded, other = (
        loaded.draw(["a red dog"], [seed]).astype(int) for loaded, seed in ((whole, 1), (half, 1), (whole, 2))
    )
    assert np.abs(shown - rounded).mean() < 5 < np.abs(shown - other).mean()  # levels of 255


def test_a_generator_of_ones_own_keeps_its_sampler(copy):
    folder = copy("stable-diffusion")
    diffusers.LCMScheduler().save_pretrained(folder / "scheduler")
    change(folder / "model_index.json", scheduler=["diffusers", "LCMScheduler"])
    for given, kind in (({}, diffusers.LCMScheduler), ({"scheduler": "DDPMScheduler"}, diffusers.DDPMScheduler)):
        own = profile.load("mini", generator=str(folder), **given)
        assert isinstance(Generator.load(own).pipeline.scheduler, kind)
    assert profile.load("mini").pair(generator=str(profile.MINI / "stable-diffusion")).scheduler == "DDPMScheduler"
    assert profile.load("mini").pair(generator=str(folder)).scheduler is None


def test_a_broken_drawing_is_refused():
    generator = Generator.load(profile.load("mini", num_inference_steps=2))
    generator.pipeline.vae.decoder.conv_out.bias.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="The drawing of 'a dog' by .* holds NaN or infinity: take dtype float32"):
        generator.draw(["a dog"], [0])


def test_a_drawing_of_one_colour_is_said(caplog):
    generator = Generator.load(profile.load("mini", num_inference_steps=2))
    generator.draw(["a dog"], [0])
    assert not caplog.text
    generator.pipeline.vae.decoder.conv_out.bias.data.fill_(-50)
    assert not generator.draw(["a dog", "a cup"], [0, 1]).any()
    assert "2 drawings by " in caplog.text and "of one colour throughout, such as that of 'a dog'" in caplog.text


def test_a_safety_checker_is_left_out_and_one_that_stays_is_heard(monkeypatch):
    assert _without_checker(diffusers.LatentConsistencyModelPipeline) == {
        "safety_checker": None, "feature_extractor": None, "requires_safety_checker": False
    }  # fmt: skip
    assert _without_checker(diffusers.AmusedPipeline) == {}
    generator = Generator.load(profile.load("mini", num_inference_steps=2))
    drawn = SimpleNamespace(images=np.zeros((2, 64, 64, 3)), nsfw_content_detected=[False, True])
    monkeypatch.setattr(type(generator.pipeline), "__call__", lambda *_, **__: drawn)
    with pytest.raises(ValueError, match="took the drawing of 'a cup' away: leave that caption out"):
        generator.draw(["a dog", "a cup"], [0, 1])


# --- bad input ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"scheduler": "ddpm"}, "scheduler is 'ddpm', which is none of diffusers: give one such as DDPM"),
        ({"scheduler": "UNet2DModel"}, "scheduler is 'UNet2DModel', which is none of diffusers"),
        ({"scheduler": "SchedulerMixin"}, "scheduler is 'SchedulerMixin', which is none of diffusers"),
        ({"scheduler": "KarrasVeScheduler"}, "is no sampler of Stable Diffusion: take one such as DDPM"),
        ({"scheduler": "FlowMatchEulerDiscreteScheduler"}, "is no sampler of Stable Diffusion: take one such as DDPM"),
        ({"num_inference_steps": 1000}, "num_inference_steps is 1000, and DDPMScheduler draws in at most 999"),
        ({"scheduler": "PNDMScheduler", "num_inference_steps": 2}, "is 2, which PNDMScheduler cannot do .*: give anot"),
    ],
)
def test_a_wrong_scheduler_type_or_folder_is_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        Generator.load(profile.load("mini", **change))


def test_what_comes_back_is_an_image_a_caption():
    for images in (None, np.zeros((2, 8, 8, 4)), np.zeros((1, 8, 8, 3)), [np.zeros((8, 8, 3))] * 2):
        pipeline = Mock(return_value=SimpleNamespace(images=images), name_or_path="odd")
        with pytest.raises(ValueError, match="odd is a Mock, which makes no image a caption: give another"):
            Generator(pipeline, 1, 1.0, 8).draw(["a", "b"], [0, 1])


def test_a_pipeline_that_draws_no_texts_or_brings_code_is_refused(made, tmp_path):
    models, _ = made("amused")
    folder = shutil.copytree(models.generator, tmp_path / "pipeline")
    models = replace(models, generator=str(folder))
    (folder / "pipeline.py").write_text("raise SystemExit('it ran')")
    for name, sentence in (
        ("AmusedImg2ImgPipeline", "is a AmusedImg2ImgPipeline, which is no text-to-image pipeline"),
        ("AudioLDM2Pipeline", "is a AudioLDM2Pipeline, which is no text-to-image pipeline"),
        ("WanPipeline", "which is no text-to-image pipeline"),
        ("StableCascadeDecoderPipeline", "which is no text-to-image pipeline"),
        ("FluxControlPipeline", "which is no text-to-image pipeline"),
        ("KandinskyV22PriorPipeline", "which is no text-to-image pipeline"),
        (["pipeline", "Mine"], "is drawn by code that lies in it, which is never run: give another pipeline"),
    ):
        change(folder / "model_index.json", _class_name=name)
        with pytest.raises(ValueError, match=sentence):
            Generator.load(models)


@pytest.mark.parametrize(("kind", "name"), [("xl", "tokenizer_2"), ("pixart", "tokenizer")], indirect=["kind"])
def test_a_tokenizer_of_another_vocabulary_is_refused(models, generator, name, tmp_path):
    folder = shutil.copytree(models.generator, tmp_path / "mixed")
    tokenizer = deepcopy(getattr(generator.pipeline, name))
    tokenizer.add_tokens([f"<extra {k}>" for k in range(80)])
    tokenizer.save_pretrained(folder / name)
    with pytest.raises(ValueError, match="mixed mixes two vocabularies"):
        Generator.load(replace(models, generator=str(folder)))


def test_a_unet_that_paints_into_an_image_is_refused(copy):
    folder = copy("stable-diffusion")
    change(folder / "unet/config.json", in_channels=9)
    with pytest.raises(ValueError, match="The U-Net of .* takes 9 channels and its VAE makes 8, .*: give a pipeline"):
        check(profile.load("mini", generator=str(folder)))

"""The generators: the shipped Stable Diffusion, and a tiny random aMUSEd through the same code."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import AmusedPipeline, AmusedScheduler, UVit2DModel, VQModel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from dfl_utils.mini import architectures
from dfl_utils.models.generator import Generator, SeededAmusedScheduler, truncated
from dfl_utils.world import profile

CAPTIONS, SEEDS = ["a red dog", "", "a blue cup on a gray background"], [5, 6, 7]


def tiny_amused(folder):
    torch.manual_seed(0)
    vqvae = VQModel(
        block_out_channels=(8, 16, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=8,
        num_vq_embeddings=40,
        mid_block_add_attention=False,
        sample_size=32,
        lookup_from_codebook=True,
    )
    vqvae.quantize.embedding.weight.data.normal_()
    text_encoder = CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=architectures.TEXT_LENGTH,
            bos_token_id=49406,
            eos_token_id=49407,
            pad_token_id=49407,
            projection_dim=16,
        )
    )
    transformer = UVit2DModel(
        hidden_size=16,
        cond_embed_dim=16,
        micro_cond_encode_dim=8,
        micro_cond_embed_dim=40,
        encoder_hidden_size=16,
        vocab_size=41,
        codebook_size=40,
        in_channels=16,
        block_out_channels=16,
        num_res_blocks=1,
        block_num_heads=2,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        sample_size=4,
    )
    tokenizer, scheduler = architectures.clip_tokenizer(), AmusedScheduler(mask_token_id=40)
    AmusedPipeline(vqvae, tokenizer, text_encoder, transformer, scheduler).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def mini():
    return profile.load("mini", num_inference_steps=3)


@pytest.fixture(scope="module")
def amused_profile(mini, tmp_path_factory):
    folder = str(tiny_amused(tmp_path_factory.mktemp("amused")))
    return profile.load("mini", generator=folder, num_inference_steps=4, guidance_scale=3.0, image_size=32)


@pytest.fixture(scope="module")
def stable_diffusion(mini):
    return Generator.load(mini)


@pytest.fixture(scope="module")
def amused(amused_profile):
    return Generator.load(amused_profile)


@pytest.fixture(params=["stable_diffusion", "amused"])
def generator(request):
    return request.getfixturevalue(request.param)


def library(generator, caption, seed):
    """The pipeline called by itself, with one image and one stream."""
    images = generator.pipeline(
        caption,
        num_inference_steps=generator.num_inference_steps,
        guidance_scale=generator.guidance_scale,
        height=generator.image_size,
        width=generator.image_size,
        generator=torch.Generator().manual_seed(seed),
        output_type="np",
    ).images
    return (images[0] * 255).round().astype(int)


def test_a_drawing_does_not_depend_on_its_batch(generator):
    together = generator.draw(CAPTIONS, SEEDS).astype(int)
    alone = np.concatenate([generator.draw([c], [s]) for c, s in zip(CAPTIONS, SEEDS, strict=True)]).astype(int)
    swapped = generator.draw(CAPTIONS[::-1], SEEDS[::-1])[::-1].astype(int)
    assert together.shape == (3, generator.image_size, generator.image_size, 3)
    assert np.abs(together - alone).max() <= 1  # batched matrix products round differently
    assert np.abs(together - swapped).max() <= 1


def test_a_drawing_depends_on_its_seed_and_its_caption(generator):
    first, seed, caption = generator.draw(["a red dog", "a red dog", "a blue cup"], [5, 6, 5])
    assert (first != seed).mean() > 0.2 and (first != caption).any()


def test_drawing_equals_the_pipeline_called_alone(generator):
    ours = generator.draw(["a red dog"], [11])[0].astype(int)
    assert np.abs(ours - library(generator, "a red dog", 11)).max() <= 1


def test_draws_in_parts_are_the_same(amused):
    whole = amused.draw(CAPTIONS, SEEDS).astype(int)
    parts = Generator(amused.pipeline, amused.num_inference_steps, amused.guidance_scale, amused.image_size, 2)
    assert np.abs(parts.draw(CAPTIONS, SEEDS) - whole).max() <= 1


def test_each_image_has_its_stream_in_a_step_of_amused():
    """A batch is the parent's step of its samples one by one, after any number of steps."""
    torch.manual_seed(0)
    ours, theirs = SeededAmusedScheduler(mask_token_id=40), AmusedScheduler(mask_token_id=40)
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


def test_only_stable_diffusion_gets_the_papers_scheduler(stable_diffusion, amused):
    assert type(stable_diffusion.pipeline.scheduler).__name__ == "DDPMScheduler"
    assert isinstance(amused.pipeline.scheduler, SeededAmusedScheduler)
    assert amused.pipeline.scheduler.config.mask_token_id == 40


def test_linear_layers_through_onednn_keep_their_outputs(amused, amused_profile):
    plain = AmusedPipeline.from_pretrained(amused_profile.generator).transformer
    codes, text, pooled = torch.randint(41, (2, 4, 4)), torch.randn(2, 32, 16), torch.randn(2, 16)
    sizes = torch.tensor([[32.0, 32, 0, 0, 6]]).expand(2, -1)
    with torch.no_grad():
        ours, theirs = (model(codes, text, pooled, sizes) for model in (amused.pipeline.transformer, plain))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_loading_amused_says_nothing(amused_profile, capfd, recwarn):
    Generator.load(amused_profile)
    out, err = capfd.readouterr()
    assert "deprecated" not in out + err and "ignored" not in out + err
    assert not [warning for warning in recwarn if "Amused" in str(warning.message)]


# --- bad input ---------------------------------------------------------------------------------------------
def test_seeds_and_captions_must_match(generator):
    with pytest.raises(ValueError, match="2 captions and 1 seeds"):
        generator.draw(["a", "b"], [1])


def test_nothing_to_draw_is_refused(generator):
    with pytest.raises(ValueError, match="0 captions and 0 seeds"):
        generator.draw([], [])


def test_a_folder_that_is_no_pipeline_is_refused(mini):
    with pytest.raises(ValueError, match="blip-base is no pipeline: it has no model_index.json"):
        Generator.load(profile.load("mini", generator=str(profile.MINI / "blip-base")))


@pytest.mark.parametrize("name", ["AmusedImg2ImgPipeline", "PipelineOfMyOwn", "DDPMPipeline", "AutoencoderKL"])
def test_a_pipeline_that_draws_no_texts_is_refused(amused_profile, tmp_path, name):
    folder = shutil.copytree(amused_profile.generator, tmp_path / "pipeline")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": name}))
    with pytest.raises(ValueError, match=f"is a {name}, which is no text-to-image pipeline"):
        Generator.load(profile.load("mini", generator=str(folder)))


@pytest.mark.parametrize(
    ("lost", "sentence"),
    [
        ("vqvae", "lacks the folder vqvae"),
        ("transformer/config.json", "transformer lacks config.json"),
        ("scheduler/scheduler_config.json", "scheduler lacks scheduler_config.json"),
        ("tokenizer/tokenizer.json", "tokenizer lacks tokenizer.json"),
    ],
)
def test_a_missing_part_of_amused_is_named(amused_profile, tmp_path, lost, sentence):
    folder = shutil.copytree(amused_profile.generator, tmp_path / "pipeline")
    path = folder / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(FileNotFoundError, match=sentence):
        Generator.load(profile.load("mini", generator=str(folder)))


def test_long_captions_are_counted(mini, amused_profile):
    for models in (mini, amused_profile):
        assert truncated(models, ["a red dog", "a red dog " * 20]) == 1

"""The generator as the finetuning needs it: in float32 whatever the profile infers in, frozen, with gradients."""

import torch
from diffusers import AutoencoderTiny, DDPMScheduler, StableDiffusionPipeline

from dfl_utils import checkpoint, preprocessing
from dfl_utils.profile import Profile


def load_pipeline(profile: Profile) -> StableDiffusionPipeline:
    """The profile's Stable Diffusion for training: fp32, frozen, its linear layers with gradients.

    Raises:
        FileNotFoundError, ValueError: as `checkpoint.check`; a pipeline of another kind, whose losses Section 4 does
            not define.
    """
    folder = profile.locate(profile.generator)
    revision = profile.revision(profile.generator)
    checkpoint.check(folder, "generator", revision=revision)
    options = {"revision": revision, "local_files_only": profile.offline}
    kind = StableDiffusionPipeline.load_config(folder, **options).get("_class_name")
    if kind != "StableDiffusionPipeline":
        raise ValueError(f"{folder} is a {kind}, and the finetuning needs a StableDiffusionPipeline: give one.")
    pipeline = StableDiffusionPipeline.from_pretrained(
        folder,
        dtype=torch.float32,
        variant=checkpoint.variant(folder),
        revision=revision,
        local_files_only=profile.offline,
        use_safetensors=True,
        **preprocessing.of_pipeline(folder),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(profile.device)
    # Two fields that the oldest published configurations lack.
    pipeline.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config, clip_sample=False, steps_offset=1)
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.requires_grad_(False).eval()
    for part in (pipeline.unet, pipeline.vae):
        part.to(memory_format=torch.channels_last)
    return pipeline


def load_decoder(profile: Profile) -> AutoencoderTiny:
    """The profile's small decoder of latents; ValueError where it has none."""
    folder, revision = decoder_folder(profile), profile.revision(profile.tiny_decoder)
    checkpoint.check(folder, "tiny decoder", revision=revision)
    decoder = AutoencoderTiny.from_pretrained(
        folder,
        dtype=torch.float32,
        variant=checkpoint.variant(folder),
        revision=revision,
        local_files_only=profile.offline,
        use_safetensors=True,
    )
    return decoder.to(profile.device, memory_format=torch.channels_last).requires_grad_(False).eval()


def decoder_folder(profile: Profile) -> str:
    """Folder or hub id of the small decoder; ValueError where the profile has none."""
    if profile.tiny_decoder is None:
        raise ValueError(f"Profile {profile.name!r} has no tiny decoder: set its field `tiny_decoder`, or choose vae.")
    return profile.locate(profile.tiny_decoder)

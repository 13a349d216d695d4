"""The captioner that a profile names: BLIP, BLIP-2, or any other of transformers."""

from transformers import PreTrainedConfig

from dfl_utils.models import checkpoint, layout, other_captioners
from dfl_utils.models.blip import Blip2Captioner, BlipCaptioner, Captioner
from dfl_utils.models.checkpoint import inference_dtype
from dfl_utils.world.profile import Profile

NEEDS = (layout.TOKENIZER, layout.PROCESSOR)
VERSION = 1  # of what any captioner says of the same image and files; part of every key that names one
CAPTIONERS = {"blip": BlipCaptioner, "blip-2": Blip2Captioner}


def load(profile: Profile) -> Captioner:
    """The profile's captioner, frozen: the class that its checkpoint's `model_type` asks for.

    Raises:
        FileNotFoundError, ValueError: as `checkpoint.load`; a checkpoint of no captioner that transformers knows; a
            `dtype` that the device cannot do.
    """
    inference_dtype(profile)
    kind, _ = _choose(profile)
    model, _ = checkpoint.load(kind.model_class, profile, "captioner", *NEEDS)
    return kind(model, processor(profile), profile.captioner_prompt, profile.min_words, profile.max_words)


def processor(profile: Profile):
    """What `load` reads beside the model, once for all checkpoints that hold the same: the captioner's processor."""
    kind, folder = _choose(profile)
    options = {"revision": profile.revision(profile.captioner), "local_files_only": profile.offline}
    return checkpoint.shared(kind.__name__, folder, lambda: kind.load_processor(folder, **options))


def _choose(profile: Profile) -> tuple[type[Captioner], str]:
    """The class that serves the profile's captioner, and the folder or hub id."""
    folder, revision = profile.provide(profile.captioner), profile.revision(profile.captioner)
    checkpoint.check(folder, "captioner", *NEEDS, revision=revision)
    config = _config(folder, revision, profile.offline)
    # A BLIP-2 with an encoder-decoder reads the prompt; it does not continue it.
    ours = CAPTIONERS if config.get("use_decoder_only_language_model", True) else {}
    kind = ours.get(config.get("model_type")) or other_captioners.choose(folder, config)
    return kind, folder


def _config(folder: str, revision: str | None, offline: bool) -> dict:
    try:
        return PreTrainedConfig.get_config_dict(folder, revision=revision, local_files_only=offline)[0]
    except OSError as error:
        reason = str(error).strip().splitlines()[0].rstrip(". ")
        raise FileNotFoundError(
            f"{folder} has no config.json that can be had ({reason}): fetch it by `dfl fetch`, or give a folder."
        ) from error

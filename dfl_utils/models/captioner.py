"""The captioner that a profile names: BLIP, BLIP-2, or any other of transformers."""

import re

from transformers import PreTrainedConfig

from dfl_utils.models import checkpoint, other_captioners
from dfl_utils.models.blip import Blip2Captioner, BlipCaptioner, Captioner
from dfl_utils.world.profile import Profile, check_way

VERSION = 1  # of what any captioner says of the same image and files; part of every key that names one
OTHER_TASK = re.compile(r"For(?!ConditionalGeneration$|CausalLM$|ImageTextToText$|Vision2Seq$)\w+$")
CAPTIONERS = {"blip": BlipCaptioner, "blip-2": Blip2Captioner}


def load(profile: Profile) -> Captioner:
    """The profile's captioner, frozen: the class that its checkpoint's `model_type` asks for.

    Raises:
        FileNotFoundError, ValueError: as `checkpoint.load`; a checkpoint of no captioner that transformers knows; a
            `dtype` that the device cannot do; captions that BLIP or BLIP-2 have no positions for.
    """
    checkpoint.inference_dtype(profile)
    kind = choose(profile)
    model, _ = checkpoint.load(kind.model_class, profile, "captioner")
    made = kind(model, processor(profile), profile.captioner_prompt, profile.min_words, profile.max_words)
    made.repetition_penalty, made.limits_count_prompt = profile.repetition_penalty, profile.limits_count_prompt
    if kind in CAPTIONERS.values():
        made.check_lengths(getattr(model.config, "num_query_tokens", 0))
    return made


def processor(profile: Profile):
    """What `load` reads beside the model, once for all checkpoints that hold the same: the captioner's processor."""
    kind, (folder, place) = choose(profile), checkpoint.source(profile, profile.captioner)
    return checkpoint.shared(kind.__name__, folder, lambda: kind.load_processor(folder, **place))


def choose(profile: Profile) -> type[Captioner]:
    """The class that serves the profile's captioner; ValueError where its configuration is of none, or fits no way."""
    folder, place = checkpoint.source(profile, profile.captioner)
    with checkpoint.explain(folder, place["revision"]):
        config, _ = PreTrainedConfig.get_config_dict(folder, **place)
    for name in config.get("architectures") or []:
        if OTHER_TASK.search(name):
            raise ValueError(
                f"{folder} is a {name} (config.json, architectures), which answers or compares and writes no captions: "
                "give a checkpoint for captioning, such as Salesforce/blip-image-captioning-base."
            )
    # A BLIP-2 with an encoder-decoder reads the prompt; it does not continue it.
    ours = CAPTIONERS if config.get("use_decoder_only_language_model", True) else {}
    kind = ours.get(config.get("model_type")) or other_captioners.choose(folder, config)
    check_way(profile, "captioner", kind.model_class.__name__)
    return kind

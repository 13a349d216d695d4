"""The captioner that a profile names: BLIP, BLIP-2, GIT, an encoder-decoder such as ViT-GPT2, or one that is prompted.

All load by transformers' own classes from safetensors; code that lies in a checkpoint is never run.
"""

import re
from collections.abc import Sequence
from types import SimpleNamespace
from typing import NoReturn

import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    GitForCausalLM,
    PreTrainedConfig,
    VisionEncoderDecoderModel,
)
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as PROMPTED

from dfl_utils.models import checkpoint
from dfl_utils.models.blip import Blip2Captioner, BlipCaptioner, Captioner
from dfl_utils.world.profile import Profile, check_way

VERSION = 1  # of what any captioner says of the same image and files; part of every key that names one
OTHER_TASK = re.compile(r"For(?!ConditionalGeneration$|CausalLM$|ImageTextToText$|Vision2Seq$)\w+$")
OWN_CODE = {"trust_remote_code": False}  # said aloud, or the library asks at the keyboard


class GitCaptioner(Captioner):
    """GIT: image and text are one sequence. What the text side sees are pixels, encoded anew with each candidate."""

    model_class = GitForCausalLM

    @property
    def text_config(self) -> PreTrainedConfig:
        return self.model.config

    def _encode(self, pixels: Tensor) -> Tensor:
        return pixels

    def _logits(self, image_embeds: Tensor, input_ids: Tensor) -> Tensor:
        # The image's places come first.
        return self.model(input_ids=input_ids, pixel_values=image_embeds).logits[:, -input_ids.shape[1] :]

    def _continue(self, image_embeds: Tensor, prompt_ids: Tensor, **options) -> Tensor:
        ids = self.model.generate(
            input_ids=prompt_ids, attention_mask=torch.ones_like(prompt_ids), pixel_values=image_embeds, **options
        )
        return ids[:, prompt_ids.shape[1] :]


class EncoderDecoderCaptioner(Captioner):
    """An image encoder and a language model that attends to it, such as ViT-GPT2: `(B, T, D)` of the encoder."""

    model_class = VisionEncoderDecoderModel

    @staticmethod
    def load_processor(folder: str, **options) -> SimpleNamespace:
        return SimpleNamespace(
            image_processor=AutoImageProcessor.from_pretrained(folder, backend="pil", **OWN_CODE, **options),
            tokenizer=AutoTokenizer.from_pretrained(folder, **OWN_CODE, **options),
        )

    @property
    def text_config(self) -> PreTrainedConfig:
        return self.model.config.decoder

    @property
    def start_token_id(self) -> int:
        return self._token("decoder_start_token_id", "bos_token_id")

    @property
    def end_token_id(self) -> int:
        return self._token("eos_token_id")

    @property
    def pad_token_id(self) -> int:
        return self._token("pad_token_id", "eos_token_id")

    def _token(self, *names: str) -> int:
        """Published checkpoints name their special tokens in any of four places."""
        places = (self.model.generation_config, self.model.config, self.text_config, self.processor.tokenizer)
        for name in names:
            for place in places:
                token = getattr(place, name, None)
                if token is not None:
                    return token[0] if isinstance(token, list) else token
        raise ValueError(f"{self.model.name_or_path} names no {names[0]}: set it in its generation_config.json.")

    def _encode(self, pixels: Tensor) -> Tensor:
        return self.model.encoder(pixels).last_hidden_state

    def _logits(self, image_embeds: Tensor, input_ids: Tensor) -> Tensor:
        return self.model(encoder_outputs=BaseModelOutput(image_embeds), decoder_input_ids=input_ids).logits

    def _continue(self, image_embeds: Tensor, prompt_ids: Tensor, **options) -> Tensor:
        ids = self.model.generate(
            encoder_outputs=BaseModelOutput(image_embeds),
            decoder_input_ids=prompt_ids,
            decoder_attention_mask=torch.ones_like(prompt_ids),
            **options,
        )
        return ids[:, prompt_ids.shape[1] :]


class PromptedCaptioner(Captioner):
    """A model that is asked about an image, one image at a time: those of many sizes cannot share a batch unpadded.

    The prompt is put into the checkpoint's chat template, where it has one, as the user's text behind the image.
    """

    gives_likelihood = False

    @staticmethod
    def load_processor(folder: str, **options):
        # A part for video, which chat models have, knows no Pillow back end; a picture has one of its own.
        processor = AutoProcessor.from_pretrained(folder, **OWN_CODE, **options)
        processor.image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil", **OWN_CODE, **options)
        return processor

    @property
    def text_config(self) -> PreTrainedConfig:
        return self.model.config.get_text_config(decoder=True)

    def _vocab_size(self) -> int:
        return min(self.text_config.vocab_size, len(self.processor.tokenizer))  # large tables are padded by hundreds

    def log_likelihood(self, images: Sequence[Image.Image], captions: Sequence[Sequence[str]], **options) -> NoReturn:
        """ValueError: it is shown an image only together with its question."""
        raise ValueError(
            f"A captioner of the kind {self.model.config.model_type} cannot be asked here how likely it finds a given "
            "caption: take blip, blip-2, git or vision-encoder-decoder."
        )

    def sample(self, images, streams, *, top_p=0.9, top_k=0, temperature=1.0) -> list[list[str]]:
        """See `Captioner.sample`."""
        return [
            self._answer(image, len(seeds), **self._sampling(seeds, top_p, top_k, temperature))
            for image, seeds in zip(images, streams, strict=True)
        ]

    def describe(self, images: Sequence[Image.Image], *, num_beams: int = 3) -> list[str]:
        """See `Captioner.describe`."""
        search = self._search(num_beams, self.profile.beam_penalty)
        return [text for image in images for text in self._answer(image, 1, **search)]

    @torch.no_grad()
    def _answer(self, image: Image.Image, count: int, **options) -> list[str]:
        """`count` answers about an image; ValueError where the prompt goes elsewhere than to `input_ids`."""
        inputs = self.processor(images=[image], text=[self._question()], return_tensors="pt")
        if "input_ids" not in inputs:
            kind = self.model.config.model_type
            raise ValueError(f"A captioner of the kind {kind} reads its prompt in another way: take another captioner.")
        # Every tensor is repeated, also of an encoder-decoder, which has encoded nothing yet.
        question, inputs = self.model._expand_inputs_for_generation(
            count, is_encoder_decoder=False, **inputs.to(self.model.device, self.model.dtype)
        )
        ids = self.model.generate(input_ids=question, **inputs, **self._limits(0), **options)
        width = question.shape[1]
        handed_back = torch.equal(ids[:, :width], question)  # by decoders, not by encoder-decoders
        return self._texts(ids[:, width:] if handed_back else ids)

    def _question(self) -> str:
        if not getattr(self.processor, "chat_template", None):
            return self.prompt
        content = [{"type": "image"}, {"type": "text", "text": self.prompt}]
        message = [{"role": "user", "content": content}]
        return self.processor.apply_chat_template(message, add_generation_prompt=True)


CAPTIONERS = {
    "blip": BlipCaptioner,
    "blip-2": Blip2Captioner,
    "git": GitCaptioner,
    "vision-encoder-decoder": EncoderDecoderCaptioner,
}


def load(profile: Profile) -> Captioner:
    """The profile's captioner, frozen: the class that its checkpoint's `model_type` asks for.

    Raises:
        FileNotFoundError, ValueError: as `checkpoint.load`; a checkpoint of no captioner that transformers knows; a
            `dtype` that the device cannot do; captions that BLIP or BLIP-2 have no positions for.
    """
    checkpoint.inference_dtype(profile)
    kind = choose(profile)
    model, _ = checkpoint.load(kind.model_class, profile, "captioner")
    made = kind(model, processor(profile), profile)
    if kind in (BlipCaptioner, Blip2Captioner):
        made.check_lengths()
    return made


def check(profile: Profile) -> None:
    """What `load` refuses, as far as it is seen without weights: class, processor, and for BLIP the lengths."""
    kind, read, (folder, place) = choose(profile), processor(profile), checkpoint.source(profile, profile.captioner)
    if kind in (BlipCaptioner, Blip2Captioner):
        with checkpoint.opening(folder, place["revision"]):
            bare = SimpleNamespace(config=AutoConfig.from_pretrained(folder, **place), name_or_path=folder)
        kind(bare, read, profile).check_lengths()


def processor(profile: Profile):
    """What `load` reads beside the model, once for all checkpoints that hold the same: the captioner's processor."""
    kind, (folder, place) = choose(profile), checkpoint.source(profile, profile.captioner)
    with checkpoint.opening(folder, place["revision"]):
        return checkpoint.shared(kind.__name__, folder, lambda: kind.load_processor(folder, **place))


def choose(profile: Profile) -> type[Captioner]:
    """The class that serves the profile's captioner; ValueError where its configuration is of none, or fits no way."""
    folder, place = checkpoint.source(profile, profile.captioner)
    with checkpoint.opening(folder, place["revision"]):
        config, _ = PreTrainedConfig.get_config_dict(folder, **place)
    for name in config.get("architectures") or []:
        if OTHER_TASK.search(name):
            raise ValueError(
                f"{folder} is a {name} (config.json, architectures), which answers or compares and writes no captions: "
                "give a checkpoint for captioning, such as Salesforce/blip-image-captioning-base."
            )
    # A BLIP-2 with an encoder-decoder reads the prompt; it does not continue it.
    ours = CAPTIONERS if config.get("use_decoder_only_language_model", True) else {}
    kind = ours.get(config.get("model_type")) or _prompted(folder, config)
    check_way(profile, "captioner", kind.model_class.__name__)
    return kind


def _prompted(folder: str, config: dict) -> type[Captioner]:
    kind = config.get("model_type")
    model_class = getattr(transformers, PROMPTED.get(kind, ""), None)
    if model_class is None or kind == "pix2struct":  # whose decoder continues the prompt
        code = ", and code that lies in a checkpoint is never run" if "auto_map" in config else ""
        raise ValueError(
            f"{folder} is no captioner that the game can play with: its model_type is {kind}{code}; give a checkpoint "
            "of blip, blip-2, git, vision-encoder-decoder or another image-text-to-text model of transformers."
        )
    return type("PromptedCaptioner", (PromptedCaptioner,), {"model_class": model_class})

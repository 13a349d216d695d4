"""The paper's models as shapes without numbers: BLIP ViT-B, Stable Diffusion 1.4 and TAESD on torch's meta device.

What a pass costs in FLOPs depends on shapes alone. The configurations are those of the hub's BLIP
(Salesforce/blip-image-captioning-base), CompVis/stable-diffusion-v1-4 and madebyollin/taesd; what is a default of its
class is left to that, but for the heads of BLIP's text decoder: no shape depends on them. A test holds their sizes.
"""

from dataclasses import dataclass
from types import SimpleNamespace

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDPMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipTextConfig,
    BlipVisionConfig,
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedTokenizerBase,
)

from dfl_utils.models.blip import BlipCaptioner, Captioner
from dfl_utils.models.checkpoint import check_vocabulary
from dfl_utils.training.losses import Batch
from dfl_utils.training.teacher_forcing import Caption

IMAGE_SIZE, BLIP_SIZE, TOKENS = 512, 384, 77  # pixels a side of generator and captioner; tokens of a prompt
CLIP_TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
UNET = {"sample_size": 64, "cross_attention_dim": 768}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "sample_size": IMAGE_SIZE,
}


class _Captioner(BlipCaptioner):
    """It sees all of an image without being shown a mask: whether one is all ones cannot be asked of a shape."""

    def _seen(self, image_embeds: Tensor) -> dict[str, Tensor]:
        return {"encoder_hidden_states": image_embeds}


@dataclass(frozen=True)
class _Caption(Caption):
    """Masks keep their numbers, since how many positions they choose decides a shape; the rest has none."""

    @property
    def words(self) -> Tensor:
        return torch.cat([torch.arange(count + 1) < count for count in self.counts])

    def rows(self, chosen: slice) -> "_Caption":
        counts = self.counts[chosen]
        ids, mask, places = (part[chosen] for part in (self.input_ids, self.attention_mask, self.places))
        return _Caption(ids, mask, places, self.targets.new_empty(sum(counts) + len(counts)), counts)


def models(own: Captioner, tokenizer: PreTrainedTokenizerBase) -> tuple[Captioner, SimpleNamespace, AutoencoderTiny]:
    """Captioner, the parts of a pipeline, and the tiny decoder.

    Args:
        own: a BLIP whose processor and prompt are taken; ValueError where its vocabulary is not BLIP's.
        tokenizer: CLIP's.
    """
    with torch.device("meta"):
        blip = BlipForConditionalGeneration(
            BlipConfig(text_config=BlipTextConfig().to_dict(), vision_config=BlipVisionConfig().to_dict())
        )
        text_encoder = CLIPTextModel(CLIPTextConfig(**CLIP_TEXT))
        unet, vae, tiny = UNet2DConditionModel(**UNET), AutoencoderKL(**VAE), AutoencoderTiny()
    check_vocabulary("A count of the published sizes", len(own.processor.tokenizer), blip.config.text_config.vocab_size)
    pipeline = SimpleNamespace(
        text_encoder=text_encoder, unet=unet, vae=vae, scheduler=DDPMScheduler(), tokenizer=tokenizer
    )
    for part in (blip, text_encoder, unet, vae, tiny):
        part.requires_grad_(False).eval()
    captioner = _Captioner(blip, own.processor, own.prompt, own.min_words, own.max_words)
    return captioner, pipeline, tiny


def batch(caption: Caption) -> tuple[Batch, Tensor]:
    """A batch of those captions with images of the published sizes, and the images as the autoencoder takes them."""
    size, side = len(caption.counts), IMAGE_SIZE // 8

    def shape(*sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(size, *sizes, dtype=dtype, device="meta")

    ids, targets = caption.input_ids.to("meta"), caption.targets.to("meta")
    read = _Caption(ids, caption.attention_mask.cpu(), caption.places.cpu(), targets, caption.counts)
    made = Batch(
        pixel_values=shape(3, BLIP_SIZE, BLIP_SIZE),
        caption=read,
        prompt_ids=shape(TOKENS, dtype=torch.long),
        latents=shape(4, side, side),
        timesteps=shape(dtype=torch.long),
        noise=shape(4, side, side),
        step_noise=shape(4, side, side),
    )
    return made, shape(3, IMAGE_SIZE, IMAGE_SIZE)

"""The paper's models as shapes without numbers: BLIP ViT-B, Stable Diffusion 1.4 and TAESD on torch's meta device.

What a pass costs in FLOPs and holds in memory depends on shapes alone. Configurations are those of the hub
(Salesforce/blip-image-captioning-base, CompVis/stable-diffusion-v1-4, madebyollin/taesd), defaults left to their class,
but for the heads of BLIP's text decoder: no shape depends on them. A test holds their sizes.
"""

import weakref
from collections.abc import Iterable
from types import SimpleNamespace

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
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
from dfl_utils.training.pairs import Batch, Caption

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


def models(small: Captioner, tokenizer: PreTrainedTokenizerBase) -> tuple[Captioner, SimpleNamespace, AutoencoderTiny]:
    """Captioner with a small one's processor and prompt, the parts of a pipeline, and the tiny decoder.

    ValueError: a small captioner whose vocabulary is not BLIP's.
    """
    with torch.device("meta"):
        blip = BlipForConditionalGeneration(
            BlipConfig(text_config=BlipTextConfig().to_dict(), vision_config=BlipVisionConfig().to_dict())
        )
        text_encoder = CLIPTextModel(CLIPTextConfig(**CLIP_TEXT))
        unet, vae, tiny = UNet2DConditionModel(**UNET), AutoencoderKL(**VAE), AutoencoderTiny()
    check_vocabulary(
        "A count of the published sizes", len(small.processor.tokenizer), blip.config.text_config.vocab_size
    )
    pipeline = SimpleNamespace(
        text_encoder=text_encoder, unet=unet, vae=vae, scheduler=DDPMScheduler(), tokenizer=tokenizer
    )
    for part in (blip, text_encoder, unet, vae, tiny):
        part.requires_grad_(False).eval()
    captioner = _Captioner(blip, small.processor, small.profile)
    return captioner, pipeline, tiny


def batch(caption: Caption) -> tuple[Batch, Tensor]:
    """A batch of those captions with images of the published sizes, and the images as the autoencoder takes them."""
    size, side = len(caption.counts), IMAGE_SIZE // 8

    def shape(*sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(size, *sizes, dtype=dtype, device="meta")

    ids, targets = caption.input_ids.to("meta"), caption.targets.to("meta")
    # Masks keep their numbers: how many positions they choose decides a shape.
    read = Caption(ids, caption.attention_mask.cpu(), caption.places.cpu(), targets, caption.counts)
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


# --- Memory: what a step holds at most, of the tensors that torch would have to allocate.


class _Held(TorchDispatchMode):
    """Bytes of all storages alive, `live`, and at most so far, `peak`."""

    def __init__(self, tensors: Iterable[Tensor]):
        super().__init__()
        self.live, self.peak, self._known = 0, 0, set()
        for tensor in tensors:
            self._hold(tensor)

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        place, size = id(storage), storage.nbytes()
        if place not in self._known:
            self._known.add(place)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._release, place, size)

    def _release(self, place: int, size: int) -> None:
        self._known.discard(place)
        self.live -= size

    def __torch_dispatch__(self, call, types, args=(), kwargs=None):
        made = call(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else [made]:
            if isinstance(one, Tensor) and one.device.type == "meta":
                self._hold(one)
        return made


class _Efficient(TorchFunctionMode):
    """Attention by the kernel that a GPU takes in float32, which keeps no matrix of weights; a shape takes another."""

    def __torch_function__(self, call, types, args=(), kwargs=None):
        if call is not F.scaled_dot_product_attention:
            return call(*args, **(kwargs or {}))
        return self._attend(*args, **(kwargs or {}))

    def _attend(self, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **_):
        if attn_mask is not None:
            attn_mask = attn_mask.to(query.dtype).expand(*query.shape[:-1], key.shape[-2])
        kernel = torch.ops.aten._scaled_dot_product_efficient_attention
        return kernel(query, key, value, attn_mask, True, dropout_p, is_causal, scale=scale)[0]


def peak(step: nn.Module, batch: Batch, images: Tensor) -> int:
    """Bytes that a `savings.Step` on the meta device holds at most, its models and AdamW's moments included.

    On an H100 the joint step grew by 0 to 6 % more with every pair than is counted here (data/gpu/benchmarks.csv).
    """
    trained = step.prepare()
    held = _Held([*step.parameters(), *step.buffers(), *step.vae.parameters(), images])
    with _Efficient(), held:
        torch.stack(list(step(batch, images).values())).sum().backward()
    step.zero_grad(set_to_none=True)
    return held.peak + 2 * sum(weights.nbytes for weights in trained)

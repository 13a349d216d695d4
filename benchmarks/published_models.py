"""The published checkpoints as shapes without numbers, written by hand, and what is known of the sizes of their
files.

Whether the paper's own models would run here can be asked of their shapes: which layers are trained, how many weights
there are, what a pass costs. They are made on torch's meta device, in a second for all.

Configurations: the `config.json` of each id on the Hugging Face hub as public code quotes it (BLIP ViT-B and BLIP-2
whole; BLIP ViT-L, CLIP, DINO and the parts of Stable Diffusion from the papers' sizes and the classes' defaults,
which were made for them); aMUSEd: its transformer's defaults, and the autoencoder that its paper describes, whose
widths are not verified here. None was fetched. The sizes of files bear most of them out: see `Published.bytes`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel, UVit2DModel, VQModel
from torch import nn
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    BlipConfig,
    BlipForConditionalGeneration,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    ViTConfig,
    ViTModel,
)

from dfl_utils.training.full_size import CLIP_TEXT, UNET, VAE

# BLIP's text decoder is BERT-base, of 12 heads where its class's default is 8: heads change no count and no shape.
BLIP_TEXT = {"num_attention_heads": 12}
BLIP_LARGE_VISION = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
}


# A caption ends in a newline (50118), not in the tokenizer's end; 50,266 tokens, padded to a multiple of 64.
OPT = {
    "model_type": "opt",
    "vocab_size": 50304,
    "hidden_size": 2560,
    "ffn_dim": 10240,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "word_embed_proj_dim": 2560,
    "eos_token_id": 50118,
}
CLIP_VISION = {**BLIP_LARGE_VISION, "patch_size": 14, "image_size": 224, "projection_dim": 768}
AMUSED_BLOCKS = (128, 256, 256, 512, 768)
VQVAE = {
    "block_out_channels": AMUSED_BLOCKS,
    "down_block_types": ("DownEncoderBlock2D",) * len(AMUSED_BLOCKS),
    "up_block_types": ("UpDecoderBlock2D",) * len(AMUSED_BLOCKS),
    "layers_per_block": 2,
    "latent_channels": 64,
    "num_vq_embeddings": 8192,
    "mid_block_add_attention": False,
    "lookup_from_codebook": True,
}


@dataclass(frozen=True)
class Published:
    """A published model, or a part of a published pipeline.

    Attributes:
        id: its name on the hub.
        make: builds it; see `on_meta`.
        parameters: distinct ones, counted of `make`.
        bytes: of its published file of float32 weights, in public listings of its repository; None: no exact number was
            seen. 4 x (parameters + repeated) and a header make it up.
        repeated: weights that the file holds a second time, tied ones.
        stated: millions of parameters that its authors or its card name, or None.
    """

    id: str
    make: Callable[[], nn.Module]
    parameters: int
    bytes: int | None = None
    repeated: int = 0
    stated: float | None = None


def _blip(encoder_hidden_size: int = 768, **vision: int) -> BlipForConditionalGeneration:
    text = {**BLIP_TEXT, "encoder_hidden_size": encoder_hidden_size}
    return BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision))


def _blip2() -> Blip2ForConditionalGeneration:
    # Vision tower (ViT-g, 224 px) and Q-Former are the class's defaults: the published file names none of their sizes.
    return Blip2ForConditionalGeneration(Blip2Config(text_config=OPT, num_query_tokens=32, image_token_index=50265))


def _clip() -> CLIPModel:
    text = {**CLIP_TEXT, "projection_dim": 768}
    return CLIPModel(CLIPConfig(projection_dim=768, text_config=text, vision_config=CLIP_VISION))


TIED_BERT, TIED_OPT = 30524 * 768, 50304 * 2560  # output layers that are their models' embeddings
SD, AMUSED = "CompVis/stable-diffusion-v1-4", "amused/amused-512"
SHAPES = {
    # pytorch_model.bin at commit 82a3776; the repository holds no safetensors there.
    "blip-base": Published(
        "Salesforce/blip-image-captioning-base", _blip, 223_971_644, bytes=989_820_849, repeated=TIED_BERT
    ),
    "blip-large": Published(
        "Salesforce/blip-image-captioning-large",
        lambda: _blip(1024, **BLIP_LARGE_VISION),
        446_290_492,
        bytes=1_879_014_680,
        repeated=TIED_BERT,
    ),
    # Two shards of 10.0 and 5.5 GB.
    "blip2": Published("Salesforce/blip2-opt-2.7b-coco", _blip2, 3_744_761_856, repeated=TIED_OPT),
    # Bytes of Stable Diffusion's parts are those of v1-5, which has the same shapes; not seen for v1-4.
    "text_encoder": Published(SD, lambda: CLIPTextModel(CLIPTextConfig(**CLIP_TEXT)), 123_060_480, bytes=492_265_874),
    "unet": Published(SD, lambda: UNet2DConditionModel(**UNET), 859_520_964, bytes=3_438_167_540),
    "vae": Published(SD, lambda: AutoencoderKL(**VAE), 83_653_863, bytes=334_643_276),
    "clip": Published("openai/clip-vit-large-patch14", _clip, 427_616_513, bytes=1_710_540_580),
    # DINO's paper says 85 M for ViT-B.
    "dino": Published(
        "facebook/dino-vitb8", lambda: ViTModel(ViTConfig(patch_size=8), add_pooling_layer=False), 85_807_872, stated=85
    ),
    "tiny_decoder": Published("madebyollin/taesd", AutoencoderTiny, 2_445_063, bytes=9_793_292),
    # diffusers' page of aMUSEd: 603 M at 256 px, 608 M at 512 px, which adds a convolution down and one up.
    "amused transformer": Published(
        AMUSED, lambda: UVit2DModel(downsample=True, upsample=True), 608_257_792, stated=608
    ),
    # aMUSEd's paper: 146 M, 16 times smaller codes of 64 channels, 8,192 of them, no self-attention.
    "amused vqvae": Published(AMUSED, lambda: VQModel(**VQVAE), 146_244_675, stated=146),
    "amused text_encoder": Published(
        AMUSED, lambda: CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_TEXT, projection_dim=768)), 123_650_304
    ),
}


def on_meta(name: str) -> nn.Module:
    """The model of that name in `SHAPES` on the meta device, in evaluation mode: shapes without numbers.

    Raises:
        ValueError: no such name.
    """
    if name not in SHAPES:
        raise ValueError(f"There is no published model {name!r}: choose one of {', '.join(SHAPES)}.")
    with torch.device("meta"):
        return SHAPES[name].make().eval()

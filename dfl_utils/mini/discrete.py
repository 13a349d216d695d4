"""The second generator: a discrete autoencoder whose codes a transformer writes (aMUSEd's classes), told by CLIP.

It is no diffusion model: of the family of the first DALL-E, a VAE with a codebook and a prior over its codes. The
autoencoder is Stable Diffusion's with a codebook laid over its latents; the transformer learns to fill in masked codes
(MaskGIT). It stands where the paper put LAFITE (Table 8).
"""

import math
from pathlib import Path

import numpy as np
import torch
from diffusers import AmusedPipeline, AmusedScheduler, AutoencoderKL, UVit2DModel, VQModel
from safetensors.torch import load_file, save_file
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTextModelWithProjection

from dfl_utils.mini import architectures, web
from dfl_utils.mini.diffusion import NUM_SCENES, precompute_latents, web_captions
from dfl_utils.mini.training import Schedule, Training
from dfl_utils.world import scenes

CODES = 1024
MASK = CODES  # id of the masked code
SIDE = 8  # codes a side
CODEBOOK_SCENES = 4000
OUTPUT_SCALE = 0.1  # of the first output weights; embeddings are normalised and need none
BATCH = 64
IMAGE_SIZE, AESTHETIC_SCORE = 64, 6  # aMUSEd's further conditions; constants here


def text_encoder(clip: CLIPModel) -> CLIPTextModelWithProjection:
    """The CLIP's text tower with its projection: the transformer sees its hidden states and the projected embedding."""
    encoder = CLIPTextModelWithProjection(clip.config.text_config)
    encoder.text_model.load_state_dict(clip.text_model.state_dict())
    encoder.text_projection.load_state_dict(clip.text_projection.state_dict())
    return encoder.eval().requires_grad_(False)


def transformer() -> UVit2DModel:
    """3 M parameters on 8 x 8 codes, width 128."""
    return UVit2DModel(
        hidden_size=128,
        cond_embed_dim=128,
        micro_cond_encode_dim=16,
        micro_cond_embed_dim=80,
        encoder_hidden_size=128,
        vocab_size=CODES + 1,
        codebook_size=CODES,
        in_channels=128,
        block_out_channels=128,
        num_res_blocks=1,
        block_num_heads=4,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=256,
        sample_size=SIDE,
    )


def scheduler() -> AmusedScheduler:
    return AmusedScheduler(mask_token_id=MASK)


def _merge(first: torch.nn.Conv2d, pointwise: torch.nn.Conv2d, channels: int) -> tuple[Tensor, Tensor]:
    """Weight and bias of `pointwise(first(x))`, its first `channels` outputs, as one convolution."""
    mix = pointwise.weight[:channels, :, 0, 0]
    weight = torch.einsum("om,mikl->oikl", mix, first.weight)
    return weight, mix @ first.bias + pointwise.bias[:channels]


def _codebook(latents: Tensor) -> Tensor:
    """Mean latent of each of `CODES` clusters of patches, `(CODES, channels)`.

    What is clustered are the distinct patches' pixels, not their latents: plain ground is two thirds of all patches
    and four different ones, and clusters of latents would spend three quarters of the codes on it.
    """
    scene_patches = [_patches(scenes.render(web.scene(k))) for k in range(len(latents))]
    patches = np.concatenate(scene_patches).astype(np.float32) / 127.5 - 1
    clusters = MiniBatchKMeans(
        CODES, batch_size=8192, n_init=1, max_iter=20, max_no_improvement=20, init="random", random_state=0
    ).fit(np.unique(patches, axis=0))
    which = torch.from_numpy(clusters.predict(patches)).long()
    rows = latents.permute(0, 2, 3, 1).reshape(len(which), -1)
    total = torch.zeros(CODES, rows.shape[1]).index_add_(0, which, rows)
    return total / torch.bincount(which, minlength=CODES).clamp(min=1)[:, None]


def _patches(image: np.ndarray) -> np.ndarray:
    """The 64 patches of 8 x 8 pixels of an image, row by row, `(64, 192)` uint8."""
    return image.reshape(SIDE, 8, SIDE, 8, 3).transpose(0, 2, 1, 3, 4).reshape(SIDE * SIDE, -1)


@torch.no_grad()
def autoencoder(vae: AutoencoderKL, latents: Tensor) -> VQModel:
    """A `VQModel` with the weights of `vae` and a codebook of its mean latents of like patches.

    Args:
        vae: the trained autoencoder; images in [-1, 1].
        latents: scaled latent means `(scenes, channels, 8, 8)` of the web scenes, in their order.

    Returns:
        Encodes images in [-1, 1]; decodes codes to images in [0, 1], as aMUSEd's pipeline expects.
    """
    config = vae.config
    channels = config.latent_channels
    model = VQModel(
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        latent_channels=channels,
        norm_num_groups=config.norm_num_groups,
        down_block_types=config.down_block_types,
        up_block_types=config.up_block_types,
        mid_block_add_attention=False,
        sample_size=config.sample_size,
        num_vq_embeddings=CODES,
        lookup_from_codebook=True,
    )
    encoder = vae.encoder.state_dict()
    encoder["conv_out.weight"], encoder["conv_out.bias"] = _merge(vae.encoder.conv_out, vae.quant_conv, channels)
    model.encoder.load_state_dict(encoder)
    model.quant_conv.weight.copy_(torch.eye(channels)[:, :, None, None])
    model.quant_conv.bias.zero_()
    model.post_quant_conv.load_state_dict(vae.post_quant_conv.state_dict())
    model.decoder.load_state_dict(vae.decoder.state_dict())
    model.decoder.conv_out.weight.mul_(0.5)  # [-1, 1] -> [0, 1]
    model.decoder.conv_out.bias.mul_(0.5).add_(0.5)
    model.quantize.embedding.weight.copy_(_codebook(latents[:CODEBOOK_SCENES].float() / config.scaling_factor))
    return model.eval()


@torch.no_grad()
def precompute_codes(file: Path, model: VQModel, latents: Tensor, scaling_factor: float) -> Tensor:
    """Codes of the web scenes, `(scenes, 8, 8)` int16; kept in `file`."""
    if file.exists():
        return load_file(file)["codes"]
    book = model.quantize.embedding.weight
    rows = (latents / scaling_factor).permute(0, 2, 3, 1).reshape(-1, SIDE * SIDE, book.shape[1])
    codes = torch.cat([torch.cdist(part.float(), book).argmin(-1).short() for part in rows.split(256)])
    codes = codes.reshape(-1, SIDE, SIDE)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({"codes": codes.contiguous()}, file.with_suffix(".partial"))
    file.with_suffix(".partial").replace(file)
    return codes


@torch.no_grad()
def start_from_looks(model: UVit2DModel, codes: Tensor) -> None:
    """Give codes of like patches like embeddings and like output weights, before any training.

    As unrelated classes, a thousand codes must each be learned by themselves; here a red corner starts beside a red
    corner. The vectors are principal components of the mean patch of each code.

    Args:
        codes: of the first web scenes, `(scenes, 8, 8)`.
    """
    which = codes.reshape(-1).long()
    patches = torch.from_numpy(np.concatenate([_patches(scenes.render(web.scene(k))) for k in range(len(codes))]))
    count = torch.bincount(which, minlength=CODES).clamp(min=1)[:, None]
    looks = torch.zeros(CODES, patches.shape[1]).index_add_(0, which, patches.float()) / count
    left, scale, _ = torch.linalg.svd(looks - looks.mean(0), full_matrices=False)
    width = model.mlm_layer.conv2.weight.shape[1]
    vectors = left[:, :width] * scale[:width].sqrt()  # the root lets faint differences speak, too
    vectors /= vectors.std()
    model.embed.embeddings.weight[:CODES] = vectors
    model.mlm_layer.conv2.weight.copy_(OUTPUT_SCALE * vectors[:, :, None, None])


def masked(codes: Tensor, generator: torch.Generator) -> Tensor:
    """Codes `(B, 8, 8)` with a share of each image masked, drawn by MaskGIT's cosine law; at least one code."""
    rate = torch.cos(torch.rand(len(codes), generator=generator) * math.pi / 2)
    count = (rate * SIDE * SIDE).ceil().clamp(min=1)
    order = torch.rand(len(codes), SIDE * SIDE, generator=generator).argsort(1).argsort(1)
    return codes.masked_fill((order < count[:, None]).reshape(codes.shape), MASK)


def micro_conditions(count: int) -> Tensor:
    """What aMUSEd's pipeline says of size, crop and looks, `(count, 5)`."""
    return torch.tensor([[IMAGE_SIZE, IMAGE_SIZE, 0, 0, AESTHETIC_SCORE]], dtype=torch.float32).expand(count, -1)


def pipeline(final: Path, clip: CLIPModel) -> AmusedPipeline:
    """The trained transformer of `final` and the autoencoder beside it as a pipeline in fp16."""
    transformer, vqvae = UVit2DModel.from_pretrained(final), VQModel.from_pretrained(final.parent / "vqvae")
    return AmusedPipeline(
        vqvae=vqvae.half(),
        transformer=transformer.half(),
        text_encoder=text_encoder(clip).half(),
        tokenizer=architectures.clip_tokenizer(),
        scheduler=scheduler(),
    )


def train(folder: Path, vae: AutoencoderKL, clip: CLIPModel, steps: int = 2500) -> UVit2DModel:
    """Codebook, then masked-code prediction on web captions, text encoder frozen."""
    torch.manual_seed(7)
    latents = precompute_latents(folder.parent / "unet" / "latents.safetensors", vae)
    if (folder / "vqvae").exists():
        vqvae = VQModel.from_pretrained(folder / "vqvae")
    else:
        vqvae = autoencoder(vae, latents)
        vqvae.save_pretrained(folder / "vqvae")
    codes = precompute_codes(folder / "codes.safetensors", vqvae, latents, vae.config.scaling_factor)
    model, encoder, tokenizer = transformer(), text_encoder(clip), architectures.clip_tokenizer()
    start_from_looks(model, codes[:CODEBOOK_SCENES])

    def loss(step: int):
        generator = torch.Generator().manual_seed(step)
        indices = torch.randint(NUM_SCENES, (BATCH,), generator=generator)
        targets = codes[indices].long()
        inputs = masked(targets, generator)
        texts = web_captions(step, indices.tolist(), generator)
        tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            text = encoder(tokens, output_hidden_states=True)
        logits = model(inputs, text.hidden_states[-2], text.text_embeds, micro_conditions(BATCH))
        hidden = inputs == MASK
        right = (logits.detach().argmax(1) == targets)[hidden].float().mean().item()
        return F.cross_entropy(logits.permute(0, 2, 3, 1)[hidden], targets[hidden]), {"accuracy": right}

    Training(folder, model, loss, Schedule(steps, lr=1e-3, warmup=200, ema_decay=0.998)).run()
    return model

"""The second generator: a discrete autoencoder whose codes a transformer writes (aMUSEd's classes), told by CLIP.

It is no diffusion model: of the family of the first DALL-E, a VAE with a codebook and a prior over its codes. The
autoencoder starts as Stable Diffusion's and learns to draw from codes; the transformer learns to fill in masked codes
(MaskGIT). It stands where the paper put LAFITE (Table 8).

Codes must be clean: a code is what an 8 x 8 patch of pixels looks like, so that like patches have the same code. (With
the nearest of 1,024 mean latents, plain ground alone had 587 codes, 4.0 nats of chance that no caption explains: the
transformer spent itself on them, and drew 8 % of the things that it was asked for.)
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
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPModel, CLIPTextModelWithProjection

from dfl_utils.mini import architectures, web
from dfl_utils.mini.autoencoder import pixels
from dfl_utils.mini.diffusion import NUM_SCENES, web_captions
from dfl_utils.mini.training import Schedule, Training
from dfl_utils.world import scenes

CODES = 2048
MASK = CODES  # id of the masked code
SIDE = 8  # codes a side
CODEBOOK_SCENES = 4000
DRAWING_BATCH = 32  # scenes a step of the autoencoder's
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


def looks(file: Path) -> Tensor:
    """The pixels that each code stands for, `(CODES, 192)` in [-1, 1]: centres of clusters of patches; kept in `file`.

    What is clustered are the distinct patches: plain ground is two thirds of all patches and four different ones.
    """
    if not file.exists():
        patches = np.concatenate([_patches(scenes.render(web.scene(k))) for k in range(CODEBOOK_SCENES)])
        distinct = np.unique(patches, axis=0).astype(np.float32) / 127.5 - 1
        clusters = MiniBatchKMeans(CODES, batch_size=8192, n_init=1, max_iter=20, init="random", random_state=0)
        file.parent.mkdir(parents=True, exist_ok=True)
        centres = torch.from_numpy(clusters.fit(distinct).cluster_centers_.astype(np.float32))
        save_file({"looks": centres}, file)
    return load_file(file)["looks"]


def codes_of(batch: list[scenes.Scene], centres: Tensor) -> Tensor:
    """The code of each patch, `(B, 8, 8)` int64: the nearest of `looks`."""
    patches = torch.from_numpy(np.concatenate([_patches(scenes.render(scene)) for scene in batch])).float() / 127.5 - 1
    return torch.cdist(patches, centres).argmin(-1).reshape(-1, SIDE, SIDE)


def _patches(image: np.ndarray) -> np.ndarray:
    """The 64 patches of 8 x 8 pixels of an image, row by row, `(64, 192)` uint8."""
    return image.reshape(SIDE, 8, SIDE, 8, 3).transpose(0, 2, 1, 3, 4).reshape(SIDE * SIDE, -1)


@torch.no_grad()
def autoencoder(vae: AutoencoderKL, codebook: Tensor) -> VQModel:
    """A `VQModel` that starts with the weights of `vae`.

    Args:
        vae: the trained autoencoder; images in [-1, 1].
        codebook: a latent for each code, `(CODES, channels)`.

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
    model.quantize.embedding.weight.copy_(codebook)
    return model.eval()


@torch.no_grad()
def mean_latents(vae: AutoencoderKL, centres: Tensor) -> Tensor:
    """Mean latent of the patches of each code over the first web scenes, `(CODES, channels)`."""
    total, count = torch.zeros(CODES, vae.config.latent_channels), torch.zeros(CODES)
    for start in range(0, CODEBOOK_SCENES, 64):
        batch = [web.scene(k) for k in range(start, start + 64)]
        which = codes_of(batch, centres).flatten()
        latents = vae.encode(pixels([scenes.render(scene) for scene in batch])).latent_dist.mean
        total.index_add_(0, which, latents.permute(0, 2, 3, 1).flatten(0, 2))
        count += torch.bincount(which, minlength=CODES)
    return total / count.clamp(min=1)[:, None]


def train_autoencoder(folder: Path, vae: AutoencoderKL, centres: Tensor, steps: int = 200) -> VQModel:
    """Decoder and codebook learn to draw web scenes from their codes (L1 + MSE), the encoder to find the codes."""
    torch.manual_seed(71)
    model = autoencoder(vae, mean_latents(vae.eval(), centres))
    spread = model.quantize.embedding.weight.var().item()

    def loss(step: int):
        batch = [web.scene(DRAWING_BATCH * step + k) for k in range(DRAWING_BATCH)]
        codes, images = codes_of(batch, centres), pixels([scenes.render(scene) for scene in batch])
        latents = model.quantize.embedding(codes).permute(0, 3, 1, 2)
        error = 2 * model.decoder(model.post_quant_conv(latents)) - 1 - images
        encoded = model.encode(images).latents
        distance = (encoded - latents.detach()).square().mean() / spread
        drawn = error.square().mean()
        psnr = (4 / drawn.detach()).log10().item() * 10
        return error.abs().mean() + drawn + 0.1 * distance, {"psnr": psnr, "distance": distance.item()}

    Training(folder, model, loss, Schedule(steps, lr=5e-4, ema_decay=0.99)).run()
    return model


def precompute_codes(file: Path, centres: Tensor) -> Tensor:
    """Codes of the web scenes, `(NUM_SCENES, 8, 8)` int16; kept in `file`."""
    if not file.exists():
        parts = [codes_of([web.scene(k) for k in range(start, start + 128)], centres).short()
                 for start in range(0, NUM_SCENES, 128)]  # fmt: skip
        save_file({"codes": torch.cat(parts)}, file)
    return load_file(file)["codes"]


@torch.no_grad()
def start_from_looks(model: UVit2DModel, looks: Tensor) -> None:
    """Give codes of like patches like embeddings and like output weights, before any training.

    As unrelated classes, thousands of codes must each be learned by themselves; here a red corner starts beside a red
    corner. The vectors are principal components of the pixels `(CODES, 192)` that each code stands for.
    """
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


def train(folder: Path, vae: AutoencoderKL, clip: CLIPModel, steps: int = 1500) -> UVit2DModel:
    """Codes, an autoencoder that draws from them, then masked-code prediction on web captions, text encoder frozen."""
    centres = looks(folder / "looks.safetensors")
    if not (folder / "vqvae").exists():
        train_autoencoder(folder / "autoencoder", vae, centres).save_pretrained(folder / "vqvae")
    torch.manual_seed(7)
    model = transformer()
    start_from_looks(model, centres)
    return fill_in(folder, model, folder, clip, Schedule(steps, lr=1e-3, warmup=200, ema_decay=0.998))


def train_on(
    folder: Path, shipped: Path, clip: CLIPModel, model: UVit2DModel, first: int, steps: int = 6000
) -> UVit2DModel:
    """Train a shipped transformer on: batches from step `first` of the stream on, along a new cosine.

    The codes and their autoencoder stay as they are; `shipped` is the pipeline's folder, which has the latter.
    """
    if not (folder / "vqvae").exists():
        VQModel.from_pretrained(shipped / "vqvae", dtype=torch.float32).save_pretrained(folder / "vqvae")
    schedule = Schedule(steps, lr=1e-3, warmup=200, ema_decay=0.999)
    return fill_in(folder / f"onward-{first}", model, folder, clip, schedule, first)


def fill_in(
    folder: Path, model: UVit2DModel, codes: Path, clip: CLIPModel, schedule: Schedule, first: int = 0
) -> UVit2DModel:
    """Masked-code prediction on web captions; the folder `codes` keeps the codes of the web scenes and their looks.

    In bfloat16 and compiled a step takes 0.4 s of a core with AMX, where plain float32 takes 0.8; the fused backward
    pass of attention is slow in bfloat16 on CPUs (0.5 s of torch 2.14's step), so that its plain form is taken.
    """
    codes = precompute_codes(codes / "codes.safetensors", looks(codes / "looks.safetensors"))
    encoder, tokenizer = text_encoder(clip), architectures.clip_tokenizer()
    forward = torch.compile(model)

    def loss(step: int):
        generator = torch.Generator().manual_seed(first + step)
        indices = torch.randint(NUM_SCENES, (BATCH,), generator=generator)
        targets = codes[indices].long()
        inputs = masked(targets, generator)
        texts = web_captions(first + step, indices.tolist(), generator)
        tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                text = encoder(tokens, output_hidden_states=True)
            logits = forward(inputs, text.hidden_states[-2], text.text_embeds, micro_conditions(BATCH)).float()
        hidden = inputs == MASK
        right = (logits.detach().argmax(1) == targets)[hidden].float().mean().item()
        return F.cross_entropy(logits.permute(0, 2, 3, 1)[hidden], targets[hidden]), {"accuracy": right}

    Training(folder, model, loss, schedule).run()
    return model

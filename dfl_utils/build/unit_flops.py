"""FLOPs of one call of each kind, counted on torch's meta device: shapes decide them, and no weights are needed.

Counted as `FlopCounterMode` counts: two for a multiplication with its addition, in matrix products and convolutions.
Attention is counted as the products that it consists of, and a caption said word by word as one pass over all of it,
which the cached keys and values make true but for the (small) attention among the words.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from diffusers import DDPMScheduler
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dfl_utils.build.workload import Training, Work
from dfl_utils.build.world_shapes import CAPTION_TOKENS, CaptionerShape, Shapes, images, tokens
from dfl_utils.training import finetune
from dfl_utils.training.losses import Batch, Economy, TalkingPair

PROMPT_TOKENS = 4  # [BOS] a picture of
NUM_BEAMS = 3
BATCH_SIZE = 8  # pairs a step (Section 5)
FREE = ("step-flops", "step-losses", "step-seconds")  # shapes, and single steps: nothing beside the rest


def count(work: Callable[[], object]) -> float:
    """FLOPs of what is called."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


class UnitFlops:
    """FLOPs of single calls of a profile's models, each counted once.

    Args:
        shapes: the models.
    """

    def __init__(self, shapes: Shapes):
        self.shapes, self._counted = shapes, {}

    def of(self, work: Work) -> float:
        """FLOPs of one call.

        Raises:
            ValueError: a kind that nothing is known of.
        """
        kind, model = work.kind, work.model
        if kind in FREE:
            return 0.0
        if kind == "images":
            return self.steps(work) * self.denoising(work) + self.decoding(work)
        if kind in ("captions", "likelihood"):  # an image is encoded once for all its candidates
            return self._once(self._say, model) + self._once(self._encode, model) / work.each
        if kind in ("descriptions", "readings"):
            return NUM_BEAMS * self._once(self._say, model) + self._once(self._encode, model)
        if kind in ("finetuning", "anatomy"):
            return self._once(self._step, model, work.size, work.training or Training())
        if kind == "validation-losses":
            return self._once(self._losses, model, work.size)
        if kind == "latents":
            return self._once(self._latent, work.size)
        return self._once(self.shapes.judge, judge_of(kind))

    def steps(self, work: Work) -> int:
        """Denoising steps of a drawing: its own, or its generator's."""
        return work.steps or self.shapes.profile.generators[work.model][1]

    def denoising(self, work: Work) -> float:
        """One step of one drawing, with its caption and without (classifier-free guidance)."""
        return self._once(self._denoise, work.model, work.size)

    def decoding(self, work: Work) -> float:
        """What a drawing costs beside its steps: the caption and the empty one read, and pixels made of latents."""
        return self._once(self._decode, work.model, work.size)

    def _once(self, make: Callable, *asked: object) -> float:
        key = make.__name__, *asked
        if key not in self._counted:
            with torch.set_grad_enabled(make.__name__ == "_step"):
                self._counted[key] = count(make(*asked))
        return self._counted[key]

    def _encode(self, captioner: str) -> Callable[[], object]:
        shape = self.shapes.captioner(captioner)
        return lambda: shape.encode(images(1, shape.size))

    def _say(self, captioner: str) -> Callable[[], object]:
        shape = self.shapes.captioner(captioner)
        seen = shape.encode(images(1, shape.size))
        return lambda: shape.logits(shape.read(seen, tokens(1, PROMPT_TOKENS + CAPTION_TOKENS)))

    def _denoise(self, generator: str, size: int) -> Callable[[], object]:
        words = torch.empty(2, self.shapes.words(generator), 0, device="meta")
        if generator == "amused":
            return self._unmask(words, size)
        unet, side = self.shapes.part(generator, "unet"), self._side(generator, size)
        states = torch.empty(*words.shape[:2], unet.config.cross_attention_dim, device="meta")
        sample = torch.empty(2, unet.config.in_channels, side, side, device="meta")
        return lambda: unet(sample, torch.empty((), device="meta"), states)

    def _unmask(self, words: Tensor, size: int) -> Callable[[], object]:
        model = self.shapes.part("amused", "transformer")
        config, side = (
            model.config,
            size // 2 ** (len(self.shapes.part("amused", "vqvae").config.block_out_channels) - 1),
        )
        ids = torch.empty(2, side, side, dtype=torch.long, device="meta")
        states = torch.empty(*words.shape[:2], config.encoder_hidden_size, device="meta")
        pooled = torch.empty(2, config.cond_embed_dim, device="meta")
        micro = torch.empty(2, config.micro_cond_embed_dim // config.micro_cond_encode_dim, device="meta")
        return lambda: model(ids, states, pooled, micro)

    def _decode(self, generator: str, size: int) -> Callable[[], object]:
        text, ids = self.shapes.part(generator, "text_encoder"), tokens(2, self.shapes.words(generator))
        vae = self.shapes.part(generator, "vqvae" if generator == "amused" else "vae")
        side = size // 2 ** (len(vae.config.block_out_channels) - 1)
        latents = torch.empty(1, vae.config.latent_channels, side, side, device="meta")
        return lambda: (text(ids), vae.decoder(vae.post_quant_conv(latents)))

    def _latent(self, size: int) -> Callable[[], object]:
        vae = self.shapes.part("stable-diffusion", "vae")
        return lambda: vae.encode(images(1, size))

    def _step(self, captioner: str, size: int, training: Training) -> Callable[[], object]:
        pair, batch = self._pair(captioner, size, training)
        finetune.unfreeze(pair, training.train)

        def step():
            torch.stack(list(pair(batch).values())).sum().backward()
            pair.requires_grad_(False)  # its models are those of the other calls

        return step

    def _losses(self, captioner: str, size: int) -> Callable[[], object]:
        pair, batch = self._pair(captioner, size, Training())
        return lambda: pair(batch)

    def _pair(self, captioner: str, size: int, training: Training) -> tuple[TalkingPair, Batch]:
        shape, name = self.shapes.captioner(captioner), "stable-diffusion"
        words, text = self.shapes.words(name), self.shapes.part(name, "text_encoder")
        tokenizer = SimpleNamespace(bos_token_id=0, eos_token_id=1, pad_token_id=1)
        parts = {"unet": self.shapes.part(name, "unet"), "vae": self.shapes.part(name, "vae")}
        pipeline = SimpleNamespace(text_encoder=text, tokenizer=tokenizer, scheduler=DDPMScheduler(), **parts)
        decoder = self.shapes.tiny() if training.decoder == "tiny" else None
        pair = _Pair(shape, pipeline, training.losses, decoder, Economy(share=training.share))
        side, channels = self._side(name, size), parts["unet"].config.in_channels
        latents = torch.empty(BATCH_SIZE, channels, side, side, device="meta")
        caption = _Caption(BATCH_SIZE)
        steps = torch.empty(BATCH_SIZE, dtype=torch.long, device="meta")
        batch = Batch(images(BATCH_SIZE, shape.size), caption, tokens(BATCH_SIZE, words), latents, steps, latents)
        return pair, batch

    def _side(self, generator: str, size: int) -> int:
        return size // 2 ** (len(self.shapes.part(generator, "vae").config.block_out_channels) - 1)


@dataclass(frozen=True)
class _Caption:
    """So many captions of one length, without their tokens."""

    size: int

    @property
    def counts(self) -> tuple[int, ...]:
        return (CAPTION_TOKENS - 1,) * self.size

    @property
    def targets(self) -> Tensor:
        return torch.empty(self.size * CAPTION_TOKENS, dtype=torch.long, device="meta")

    @property
    def words(self) -> Tensor:
        return (torch.arange(CAPTION_TOKENS) < CAPTION_TOKENS - 1).repeat(self.size)

    def rows(self, chosen: slice) -> "_Caption":
        return _Caption(len(range(self.size)[chosen]))


class _Pair(TalkingPair):
    """The losses on shapes: no tokenizers, no masks."""

    def __init__(self, shape: CaptionerShape, pipeline, losses: tuple[str, ...], decoder, economy: Economy):
        index = torch.empty(shape.vocabulary, dtype=torch.long, device="meta")
        free = SimpleNamespace(index=index, check=lambda *_: None)
        looks = SimpleNamespace(image_mean=[0.5] * 3, image_std=[0.5] * 3)
        processor = SimpleNamespace(tokenizer=None, image_processor=looks)
        captioner = SimpleNamespace(model=shape.model, processor=processor)
        super().__init__(captioner, pipeline, free, losses, decoder=decoder, economy=economy)
        self.to("meta")
        self.shape = shape

    def _predict(self, pixel_values: Tensor, caption: _Caption) -> Tensor:
        states = self.shape.read(
            self.shape.encode(pixel_values), tokens(caption.size, PROMPT_TOKENS + CAPTION_TOKENS - 1)
        )
        return self.shape.logits(states[:, PROMPT_TOKENS - 1 :].flatten(0, 1))


def judge_of(kind: str) -> str:
    """The judge that a call of a kind asks: `clip` of `clip-similarity`, `clip-text` of `quality-clip-text`."""
    special = {"clip-score": "clip-text", "original-features": "features", "labels": "features"}
    name = special.get(kind, kind.removeprefix("quality-"))
    return name if name in ("clip-text", "sbert", "features") else name.partition("-")[0]

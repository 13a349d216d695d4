"""The four losses of Section 4, of a captioner and a Stable Diffusion generator that talk to each other.

`caption_loss` (Eq. 1) and `generation_loss` (Eq. 3) teach each model alone; `image_reconstruction_loss` (Eq. 2) sends
the captioner's token distributions through the generator, `text_reconstruction_loss` (Eq. 4) the generator's one-step
image through the captioner.

Two ways to train: `joint` is the paper's text, all four losses in every step. `alternating` is its authors' code
(github.com/hangligit/DalleFlamingo, October 2023): even steps have the generator's two losses, odd steps the
captioner's, and the captioner reads `previous_latents` in place of the one-step image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDPMScheduler, StableDiffusionPipeline
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.masking_utils import create_causal_mask

from dfl_utils.models.blip import Captioner
from dfl_utils.training.pairs import Batch, Caption
from dfl_utils.training.vocabulary import VocabularyMap

LOSSES = ("caption_loss", "image_reconstruction_loss", "generation_loss", "text_reconstruction_loss")
PREFERENCE = "preference_loss"  # of no equation of the paper: see `TalkingPair.preference_loss`
WAYS = {"joint": (LOSSES,), "alternating": (LOSSES[2:], LOSSES[:2])}  # way to train -> losses of its steps, in turn
CONNECTIONS = ("softmax", "gumbel")


def target_logits(captioner: Captioner, image_embeds: Tensor, caption: Caption) -> Tensor:
    """Logits `(N, V)` at the places of the targets, given what the text side sees of B images, `(B, T_image, D)`.

    Teacher forcing (Eq. 1): one pass over the true words, of which only what predicts a target goes through the head.
    """
    return captioner._logits(image_embeds, caption.input_ids, caption.attention_mask, caption.places)


def log_probabilities(captioner: Captioner, image_embeds: Tensor, caption: Caption) -> Tensor:
    """log p(caption | image) of B captions, `(B,)` nats: the sum over their tokens, the end with them."""
    losses = F.cross_entropy(target_logits(captioner, image_embeds, caption), caption.targets, reduction="none")
    return torch.stack([-part.sum() for part in losses.split([count + 1 for count in caption.counts])])


# --- The connection (Section 4.1): a distribution over the captioner's vocabulary is mixed from the generator's token
# embeddings, looked up through the vocabulary map (Appendix G), and stands in the prompt as a token does.


def soft_encode(text_encoder: nn.Module, inputs_embeds: Tensor) -> Tensor:
    """`encoder_hidden_states` `(B, L, D)` of token embeddings `(B, L, D)` without positions.

    What `CLIPTextModel` makes of token ids, from the embeddings on: it takes no `inputs_embeds` itself.
    """
    hidden = text_encoder.embeddings(inputs_embeds=inputs_embeds)
    mask = create_causal_mask(
        config=text_encoder.config, inputs_embeds=hidden, attention_mask=None, past_key_values=None
    )
    encoded = text_encoder.encoder(inputs_embeds=hidden, attention_mask=mask, is_causal=True).last_hidden_state
    return text_encoder.final_layer_norm(encoded)


def distributions(logits: Tensor, connection: str = "softmax", generator: torch.Generator | None = None) -> Tensor:
    """Token distributions `(N, V)` of logits `(N, V)`, one row a token of the caption.

    `softmax` as in the paper; `gumbel`: one token drawn a row from a `generator` on the CPU, one-hot forward, and
    backward the gradient of the softmax that it was drawn from (straight-through Gumbel-softmax, Jang et al. 2017).
    """
    if connection == "softmax":
        return logits.softmax(-1)
    uniforms = torch.rand(logits.shape, generator=generator).clamp(min=1e-20).to(logits.device)
    soft = (logits - (-uniforms.log()).log()).softmax(-1)
    hard = F.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft.dtype)
    return hard + soft - soft.detach()


def mapped_embeds(probabilities: Tensor, index: Tensor, table: Tensor, threshold: float = 0.0) -> Tensor:
    """Expected generator embeddings `(N, D)`: distributions times the rows that the vocabulary map names.

    Args:
        probabilities: `(N, V_captioner)`, rows sum to 1.
        index: `(V_captioner,)` generator token of each captioner token.
        table: `(V_generator, D)` token embeddings of the generator.
        threshold: columns of at most this probability in every row are left out, nearly all of the work; 0 is exact.
    """
    if threshold > 0:
        active = (probabilities.detach().amax(0) > threshold).nonzero().squeeze(-1)
        probabilities, index = probabilities.index_select(1, active), index[active]
    return probabilities @ table[index]


def soft_prompt(
    text_encoder: nn.Module, token_embeds: Tensor, counts: Sequence[int], length: int, ends: tuple[int, int, int]
) -> Tensor:
    """`encoder_hidden_states` `(B, length, D)` of prompts given as token embeddings.

    Args:
        text_encoder: CLIP's, as in Stable Diffusion: [BOS], the tokens, [EOS], then padding up to `length`.
        token_embeds: `(sum(counts), D)`, the tokens of all captions one after the other.
        counts: tokens of each of the B captions, at most `length` - 2 (`pairs.check` sees to it).
        length: positions that the generator reads (SD v1: 77).
        ends: the tokenizer's [BOS], [EOS] and padding; those of the published text encoder's configuration are wrong.
    """
    table, (bos, eos, pad) = text_encoder.get_input_embeddings().weight, ends
    inputs_embeds = table[pad].repeat(len(counts), length, 1)
    inputs_embeds[:, 0] = table[bos]
    inputs_embeds[torch.arange(len(counts)), torch.tensor(counts) + 1] = table[eos]
    rows = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    places = torch.cat([torch.arange(1, count + 1) for count in counts])
    inputs_embeds = inputs_embeds.index_put((rows.to(table.device), places.to(table.device)), token_embeds)
    return soft_encode(text_encoder, inputs_embeds)


# --- The losses.


@dataclass(frozen=True)
class Economy:
    """What a joint step saves; the default is the paper's step, to the letter."""

    threshold: float = 0.0  # see `mapped_embeds`; from 0 to below 1
    share: float = 1.0  # in (0, 1], of each batch that is reconstructed: an unbiased estimate of the same losses

    def __post_init__(self):
        if not 0 < self.share <= 1 or not 0 <= self.threshold < 1:
            raise ValueError(
                f"share is {self.share} and threshold {self.threshold}: a share lies above 0 and not above 1, a "
                "threshold from 0 to below 1."
            )

    def rows(self, size: int) -> int:
        """Rows of a batch of that size that go through each of the reconstructions, at least one."""
        return max(1, round(self.share * size))


def one_step_image(scheduler: DDPMScheduler, noisy: Tensor, timesteps: Tensor, predicted_noise: Tensor) -> Tensor:
    """The clean latents that a noise prediction implies (Section 4.2), `(B, C, h, w)`, differentiable in it."""
    kept = scheduler.alphas_cumprod.to(noisy.device)[timesteps].view(-1, 1, 1, 1).to(noisy.dtype)
    return (noisy - (1 - kept).sqrt() * predicted_noise) / kept.sqrt()


def previous_latents(
    scheduler: DDPMScheduler, sample: Tensor, timesteps: Tensor, predicted_noise: Tensor, noise: Tensor
) -> Tensor:
    """`prev_sample` of a DDPM step (Ho et al. 2020, Eq. 7) of each row of `sample`, `(B, C, h, w)`, from t to t - 1.

    The one-step estimate weighs 1 in it at t = 0 and next to nothing at the end. The variance is `fixed_small`.
    """
    products = F.pad(scheduler.alphas_cumprod, (1, 0), value=1.0).to(sample.device, sample.dtype).view(-1, 1, 1, 1)
    before, kept = products[timesteps], products[timesteps + 1]
    clean, alpha = one_step_image(scheduler, sample, timesteps, predicted_noise), kept / before
    mean = (before.sqrt() * (1 - alpha) * clean + alpha.sqrt() * (1 - before) * sample) / (1 - kept)
    return mean + ((1 - before) / (1 - kept) * (1 - alpha)).sqrt() * noise


class TalkingPair(nn.Module):
    """Captioner and generator in one module, whose forward gives the losses: one optimiser and one DDP wrap suffice.

    Args:
        captioner: BLIP or BLIP-2.
        pipeline: Stable Diffusion; its U-Net must keep gradients (not through `generator.use_onednn`).
        losses: some of `LOSSES`, or `PREFERENCE`; passes that none of them needs are not run.
        decoder: makes pixels of the one-step latents: the pipeline's own `vae` if None, or an `AutoencoderTiny`.
        connect: see `distributions`.
        way: one of `WAYS`: what the captioner reads of the generator. Whose turn it is is said to each pass.
        beta: of the preference loss, above 0: how much a change of preference costs.

    Raises:
        ValueError: a generator that does not predict noise, a map of other vocabularies.
    """

    def __init__(
        self,
        captioner: Captioner,
        pipeline: StableDiffusionPipeline,
        vocabulary_map: VocabularyMap,
        losses: tuple[str, ...] = LOSSES,
        *,
        decoder: AutoencoderKL | AutoencoderTiny | None = None,
        connect: str = "softmax",
        economy: Economy | None = None,
        way: str = "joint",
        beta: float = 0.1,
    ):
        super().__init__()
        if pipeline.scheduler.config.prediction_type != "epsilon":
            raise ValueError(
                f"The generator predicts {pipeline.scheduler.config.prediction_type}; the losses of Section 4 need one "
                "that predicts noise (prediction_type epsilon)."
            )
        self.text_encoder, self.unet, self.model = pipeline.text_encoder, pipeline.unet, captioner.model
        tokenizer = pipeline.tokenizer
        if not isinstance(vocabulary_map, VocabularyMap):
            raise ValueError(
                f"vocabulary_map is a {type(vocabulary_map).__name__}, such as a file of the authors' code holds: give "
                "a VocabularyMap, made with VocabularyMap.make of these two models."
            )
        vocabulary_map.check(captioner.processor.tokenizer, tokenizer, captioner.model.config.text_config.vocab_size)
        self.ends = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        self.captioner, self.scheduler = captioner, pipeline.scheduler
        self.decoder = decoder or pipeline.vae
        self.losses, self.connect, self.economy, self.way = tuple(losses), connect, economy or Economy(), way
        self.beta = beta
        self.register_buffer("index", vocabulary_map.index, persistent=False)
        processor = captioner.processor.image_processor
        self.register_buffer("mean", torch.tensor(processor.image_mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(processor.image_std).view(1, 3, 1, 1), persistent=False)

    def forward(self, batch: Batch, turn: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Each loss of `turn`, by default of `losses`, a scalar: nats a token, or squared error a latent value."""
        turn = self.losses if turn is None else turn

        def wants(*names: str) -> bool:
            return any(name in turn for name in names)

        size = len(batch.timesteps)
        share = self.economy.rows(size)
        drawn, read = slice(0, share), slice(size - share, size)  # the pairs that Eq. 2 and Eq. 4 reconstruct
        losses, prompts = {}, {}  # prompts: whose they are -> the pairs, `encoder_hidden_states`
        if wants(PREFERENCE):
            losses[PREFERENCE] = self.preference_loss(batch)

        # The captioner predicts every word of the captions.
        if wants("caption_loss", "image_reconstruction_loss"):
            part = batch if wants("caption_loss") else batch.rows(drawn)
            logits = self.predict(part.pixel_values, part.caption)
            if wants("caption_loss"):
                losses["caption_loss"] = F.cross_entropy(logits, part.caption.targets)

        # What it predicts is one prompt of the generator, what people wrote is the other.
        if wants("image_reconstruction_loss"):
            caption, length = batch.caption.rows(drawn), batch.prompt_ids.shape[1]
            predictions = logits.narrow(0, 0, len(caption.targets)) if len(logits) > len(caption.targets) else logits
            prompts["predicted"] = drawn, self.soft_prompt(predictions, caption, length, batch.seed, batch.words_before)
        if wants("generation_loss", "text_reconstruction_loss"):
            rows = slice(0, size) if wants("generation_loss") else read
            with torch.no_grad():
                prompts["written"] = rows, self.text_encoder(batch.prompt_ids[rows]).last_hidden_state
        if not prompts:
            return losses

        # By either prompt the generator predicts the noise that was put on the image.
        noisy = self.scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
        predicted = self._predict_noise(noisy, batch.timesteps, prompts)
        if wants("image_reconstruction_loss"):
            losses["image_reconstruction_loss"] = F.mse_loss(predicted["predicted"], batch.noise[drawn])
        if wants("generation_loss"):
            losses["generation_loss"] = F.mse_loss(predicted["written"], batch.noise)

        # The captioner reads the image that the prediction implies.
        if wants("text_reconstruction_loss"):
            part = batch.rows(read)
            logits = self.predict(self.shown(part, noisy[read], predicted["written"][-share:]), part.caption)
            losses["text_reconstruction_loss"] = F.cross_entropy(logits, part.caption.targets)
        return {name: losses[name] for name in turn}

    def preference_loss(self, batch: Batch) -> Tensor:
        """Direct preference optimisation (Rafailov et al. 2023, Eq. 7) of the captioner, a scalar in nats: to prefer
        each caption to `worse` by more than it did before any training, `batch.margin`."""
        image_embeds = self.captioner._encode(batch.pixel_values)
        better, worse = (log_probabilities(self.captioner, image_embeds, c) for c in (batch.caption, batch.worse))
        return -F.logsigmoid(self.beta * (better - worse - batch.margin)).mean()

    def shown(self, batch: Batch, noisy: Tensor, predicted_noise: Tensor) -> Tensor:
        """What the captioner reads of a noise prediction, `(B, 3, S, S)`, differentiable in it: the one-step image;
        in the way `alternating` a DDPM step from the clean latents as if they were the noisy ones."""
        if self.way == "joint":
            latents = one_step_image(self.scheduler, noisy, batch.timesteps, predicted_noise)
        else:
            step = batch.latents, batch.timesteps, predicted_noise, batch.step_noise
            latents = previous_latents(self.scheduler, *step)
        return self.as_pixel_values(latents, batch.pixel_values.shape[-2:])

    def predict(self, pixel_values: Tensor, caption: Caption) -> Tensor:
        """The captioner's logits `(N, V)` at each target of the captions, given images and the true words before it."""
        return target_logits(self.captioner, self.captioner._encode(pixel_values), caption)

    def soft_prompt(
        self, logits: Tensor, caption: Caption, length: int, seed: int = 0, words_before: int = 0
    ) -> Tensor:
        """What the generator is told by the captioner's predictions: `encoder_hidden_states` `(B, length, D)`.

        The predictions of the prompt are not among `logits`, that of the end gives way to the generator's own.
        """
        stream = torch.Generator().manual_seed(seed + 1)  # another than that of the batch's noise
        if words_before and self.connect != "softmax":
            torch.rand(words_before, logits.shape[-1], generator=stream)
        # Of tensors as large as these, `index_select` gives the gradient back in half of the time that indexing takes.
        words = caption.words.nonzero().squeeze(-1).to(logits.device)
        probabilities = distributions(logits.index_select(0, words), self.connect, generator=stream)
        table = self.text_encoder.get_input_embeddings().weight
        # A one-hot draw hides the columns through which its gradient flows: all of them are kept.
        threshold = self.economy.threshold if self.connect == "softmax" else 0.0
        embeds = mapped_embeds(probabilities, self.index, table, threshold)
        return soft_prompt(self.text_encoder, embeds, caption.counts, length, self.ends)

    def _predict_noise(
        self, noisy: Tensor, timesteps: Tensor, prompts: dict[str, tuple[slice, Tensor]]
    ) -> dict[str, Tensor]:
        """Optimisation: the U-Net's predictions by all prompts in one pass, in place of one pass for each."""
        rows = [part for part, _ in prompts.values()]
        sample = torch.cat([noisy[part] for part in rows]).contiguous(memory_format=torch.channels_last)
        states = torch.cat([states for _, states in prompts.values()])
        predicted = self.unet(sample, torch.cat([timesteps[part] for part in rows]), states).sample
        sizes = [len(states) for _, states in prompts.values()]
        return dict(zip(prompts, predicted.split(sizes), strict=True))

    def as_pixel_values(self, latents: Tensor, size: tuple[int, int]) -> Tensor:
        """Scaled latents as the captioner sees images: decoded, resized, normalised; differentiable.

        Resized as its processor does; in the way `alternating` bilinearly, as torchvision did of tensors in 2023. The
        authors' code leaves the normalisation out, which halves the contrast.
        """
        images = self.decoder.decode(latents / self.decoder.config.scaling_factor).sample / 2 + 0.5
        if images.shape[-2:] != size:
            bicubic = self.way == "joint"
            images = F.interpolate(images, size, mode="bicubic" if bicubic else "bilinear", antialias=bicubic)
        return (images - self.mean) / self.std

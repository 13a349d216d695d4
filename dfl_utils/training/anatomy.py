"""One joint step taken apart (Figure 6): the shapes that it hands on, its four losses, and which weights each reaches.

Read off the first batch of a run, with the models it starts from, and kept in the store.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dfl_utils.store.store import Kind
from dfl_utils.training import connection, finetune, micro_batches, pairs, teacher_forcing
from dfl_utils.training.finetune import ROLES, Recipe
from dfl_utils.training.finetuned import Finetuner
from dfl_utils.training.losses import LOSSES, Batch, TalkingPair, one_step_image

ANATOMY = Kind("anatomy", made_from=(pairs.LATENTS,))
# Appendix H: whose weights a loss updates.
REACHES = {
    "caption_loss": ("captioner",),
    "image_reconstruction_loss": ROLES,
    "generation_loss": ("generator",),
    "text_reconstruction_loss": ROLES,
}


@dataclass(frozen=True)
class Anatomy:
    """A step taken apart."""

    shapes: dict[str, tuple[int, ...]]  # name of a tensor -> its shape, in the order of the step
    losses: dict[str, float]  # loss -> its value
    # loss -> role -> Euclidean norm of the gradient at the weights that the paper trains; exactly 0 where nothing
    # arrives
    gradients: dict[str, dict[str, float]]
    trained: dict[str, int]  # role -> number of those weights
    # `image`, `noisy` and `image_hat` (one-step image) of the batch's first pair, `(H, W, 3)` uint8
    pictures: dict[str, np.ndarray]
    caption: str  # what a person wrote of it
    told: str  # the likeliest token at each place of the caption, given the true ones before it
    side: str  # `text` or `image`, of the captioner, where its trained weights are
    timestep: int  # at which it was noised

    def reaches(self) -> dict[str, tuple[str, ...]]:
        """Loss -> roles that receive a gradient, to be held against `REACHES`."""
        return {loss: tuple(role for role in ROLES if norms[role] > 0) for loss, norms in self.gradients.items()}


def dissect(finetuner: Finetuner, recipe: Recipe) -> Anatomy:
    """Take the first step of a run apart, before any weight has moved; of micro-batches, the first.

    Args:
        finetuner: models and training images.
        recipe: with all four losses.

    Raises:
        ValueError: a recipe without one of the losses.
    """
    if set(recipe.losses) != set(LOSSES):
        raise ValueError(f"A joint step has the losses {', '.join(LOSSES)}, not {', '.join(recipe.losses)} alone.")
    key = finetuner.examples_key | finetuner.models_key() | {"recipe": recipe.key() | {"losses": sorted(LOSSES)}}

    def make():
        pair, pipeline = finetuner.pair(recipe)
        rows = micro_batches.cut(recipe.batch_size, recipe.micro_batches)[0]
        batch = finetuner.pairs(pair.eval(), pipeline, recipe).batch(0, rows)
        tensors, words = walk(pair, batch)
        losses, gradients, trained = _gradients(pair, batch)
        # BLIP-2 is trained before its language model, in the query tokens.
        side = "image" if pair.model.config.model_type == "blip-2" else "text"
        return {
            "names": list(tensors),
            "shapes": [" ".join(map(str, tensor.shape)) for tensor in tensors.values()],
            "losses": np.array(losses),
            "gradients": np.array(gradients),
            "trained": np.array(trained),
            "words": [pipeline.tokenizer.decode(batch.prompt_ids[0], skip_special_tokens=True).strip(), words, side],
            "timestep": batch.timesteps[:1].cpu().numpy(),
            **{f"picture {name}": image for name, image in _pictures(pair, batch, tensors).items()},
        }, 1

    return _read(finetuner.store.get(ANATOMY, key, make))


def one_batch(finetuner: Finetuner, recipe: Recipe) -> tuple[TalkingPair, Batch]:
    """The models before any training, and a batch of the first training images, to be passed through by hand.

    Nothing of it goes to the store.
    """
    pair, pipeline = finetuner.pair(recipe)
    examples = finetuner.examples[: recipe.batch_size]
    encoded, _ = pairs._encode(pipeline, examples, finetuner.profile.image_size)
    options = {"batch_size": len(examples), "seed": recipe.seed}
    lessons = pairs.Pairs(pair.captioner, pipeline, examples, torch.from_numpy(encoded.latents), **options)
    return pair.eval(), lessons.batch(0)


def predict(pair: TalkingPair, pixel_values: Tensor, caption: teacher_forcing.Caption) -> Tensor:
    """The captioner's logits `(N, V)` at each target of the captions, given images and the true words before it."""
    return teacher_forcing.target_logits(pair.captioner, pair.captioner._encode(pixel_values), caption)


@torch.no_grad()
def walk(pair: TalkingPair, batch: Batch) -> tuple[dict[str, Tensor], str]:
    """What a joint step hands on, one part after the other, and the likeliest words of the first caption.

    The same as `TalkingPair.forward` makes in fewer passes and without economies.
    """
    seen = pair.captioner._encode(batch.pixel_values)
    logits = teacher_forcing.target_logits(pair.captioner, seen, batch.caption)
    probabilities = connection.distributions(logits[batch.caption.words], "softmax")
    mapped = connection.mapped_embeds(probabilities, pair.index, pair.text_encoder.get_input_embeddings().weight)
    length = batch.prompt_ids.shape[1]
    states = connection.soft_prompt(pair.text_encoder, mapped, batch.caption.counts, length, pair.ends)
    noisy = pair.scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
    own_states = pair.text_encoder(batch.prompt_ids).last_hidden_state
    predicted = pair.unet(noisy, batch.timesteps, own_states).sample
    clean = one_step_image(pair.scheduler, noisy, batch.timesteps, predicted)
    pixels_hat = pair.shown(batch, noisy, predicted)
    tensors = {
        "pixel_values": batch.pixel_values,
        "image embeds": seen,
        "logits": logits,
        "distributions": probabilities,
        "mapped embeds": mapped,
        "encoder_hidden_states": states,
        "noisy latents": noisy,
        "noise prediction": pair.unet(noisy, batch.timesteps, states).sample,
        "prompt_ids": batch.prompt_ids,
        "encoder_hidden_states of the caption": own_states,
        "noise prediction of the caption": predicted,
        "one-step latents": clean,
        "decoded image": pixels_hat,
        "logits of the decoded image": pair._predict(pixels_hat, batch.caption),
    }
    first = probabilities[: batch.caption.counts[0]].argmax(-1)
    return tensors, pair.captioner.processor.tokenizer.decode(first).strip()


def _gradients(pair: TalkingPair, batch: Batch) -> tuple[list[float], list[list[float]], list[int]]:
    """Losses, gradient norms (loss by role) and numbers of trained weights."""
    parameters = finetune.unfreeze(pair)
    weights_of = [[p for name, p in parameters.items() if name.startswith(f"{role}.")] for role in ROLES]
    losses = pair(batch)
    norms = [[norm(losses[loss], weights) for weights in weights_of] for loss in LOSSES]
    return [losses[loss].item() for loss in LOSSES], norms, [sum(p.numel() for p in weights) for weights in weights_of]


def norm(loss: Tensor, weights: list[Tensor]) -> float:
    """Euclidean norm of a loss's gradient at some weights; 0 where nothing arrives. The graph is kept."""
    gradients = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
    return sum(float(gradient.double().square().sum()) for gradient in gradients if gradient is not None) ** 0.5


@torch.no_grad()
def _pictures(pair: TalkingPair, batch: Batch, tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    size = batch.pixel_values.shape[-2:]
    noisy = pair.as_pixel_values(tensors["noisy latents"][:1], size)
    shown = {"image": batch.pixel_values[:1], "noisy": noisy, "image_hat": tensors["decoded image"][:1]}
    return {name: as_picture(pair, value) for name, value in shown.items()}


def as_picture(pair: TalkingPair, pixel_values: Tensor) -> np.ndarray:
    """The first of what the captioner reads, `(B, 3, H, W)`, as a picture `(H, W, 3)` uint8."""
    pixels = ((pixel_values[0] * pair.std[0] + pair.mean[0]) * 255).clamp(0, 255)
    return pixels.permute(1, 2, 0).round().byte().cpu().numpy()


def _read(content: Mapping) -> Anatomy:
    shapes = [tuple(map(int, row.split())) for row in content["shapes"]]
    gradients = [dict(zip(ROLES, row, strict=True)) for row in content["gradients"].tolist()]
    pictures = {name.removeprefix("picture "): v for name, v in content.items() if name.startswith("picture ")}
    return Anatomy(
        dict(zip(content["names"], shapes, strict=True)),
        dict(zip(LOSSES, content["losses"].tolist(), strict=True)),
        dict(zip(LOSSES, gradients, strict=True)),
        dict(zip(ROLES, content["trained"].tolist(), strict=True)),
        pictures,
        *content["words"],
        int(content["timestep"][0]),
    )

"""Steps looked at before any training: a joint one taken apart (Figure 6), and what each way shows the captioner.

Both are kept in the store.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dfl_utils.store.store import Kind
from dfl_utils.training import losses, pairs
from dfl_utils.training.finetune import ROLES, Recipe, cut, unfreeze
from dfl_utils.training.finetuned import Finetuner
from dfl_utils.training.losses import LOSSES, WAYS, TalkingPair, one_step_image
from dfl_utils.training.pairs import Batch

ANATOMY = Kind("anatomy", made_from=(pairs.LATENTS,))
WAY_GRADIENTS = Kind("way-gradients", made_from=(pairs.LATENTS,))
GENERATORS_TURN = WAYS["alternating"][0]
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
    # loss -> role -> Euclidean norm of the gradient at the weights that the paper trains; 0 where nothing arrives
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
    """Take the first step of a run on all four losses apart, no weight moved; of micro-batches, the first."""
    recipe = replace(recipe, losses=LOSSES)
    key = finetuner.examples_key | finetuner.models_key() | {"recipe": recipe.key()}

    def make():
        pair, pipeline = finetuner.pair(recipe)
        rows = cut(recipe.batch_size, recipe.micro_batches)[0]
        batch = finetuner.pairs(pair.eval(), pipeline, recipe).batch(0, rows)
        tensors, words = walk(pair, batch)
        size = batch.pixel_values.shape[-2:]
        values, gradients, trained = _gradients(pair, batch)
        # BLIP-2 is trained before its language model, in the query tokens.
        side = "image" if pair.model.config.model_type == "blip-2" else "text"
        return {
            "names": list(tensors),
            "shapes": [" ".join(map(str, tensor.shape)) for tensor in tensors.values()],
            "losses": np.array(values),
            "gradients": np.array(gradients),
            "trained": np.array(trained),
            "words": [pipeline.tokenizer.decode(batch.prompt_ids[0], skip_special_tokens=True).strip(), words, side],
            "timestep": batch.timesteps[:1].cpu().numpy(),
            "picture image": as_picture(pair, batch.pixel_values),
            "picture noisy": as_picture(pair, pair.as_pixel_values(tensors["noisy latents"][:1], size)),
            "picture image_hat": as_picture(pair, tensors["decoded image"]),
        }, 1

    return _read(finetuner.store.get(ANATOMY, key, make))


def one_batch(finetuner: Finetuner, recipe: Recipe) -> tuple[TalkingPair, Batch]:
    """The models before any training, and a batch of the first training images, to be passed through by hand."""
    pair, pipeline = finetuner.pair(recipe)
    examples = finetuner.examples[: recipe.batch_size]
    encoded, _ = pairs._encode(pipeline, examples, finetuner.profile.image_size)
    options = {"batch_size": len(examples), "seed": recipe.seed}
    lessons = pairs.Pairs(pair.captioner, pipeline, examples, torch.from_numpy(encoded.latents), **options)
    return pair.eval(), lessons.batch(0)


@torch.no_grad()
def walk(pair: TalkingPair, batch: Batch) -> tuple[dict[str, Tensor], str]:
    """What a joint step hands on, one part after the other, and the likeliest words of the first caption: the same as
    `TalkingPair.forward` makes in fewer passes."""
    seen = pair.captioner._encode(batch.pixel_values)
    logits = losses.target_logits(pair.captioner, seen, batch.caption)
    probabilities = losses.distributions(logits[batch.caption.words])
    mapped = losses.mapped_embeds(probabilities, pair.index, pair.text_encoder.get_input_embeddings().weight)
    length = batch.prompt_ids.shape[1]
    states = losses.soft_prompt(pair.text_encoder, mapped, batch.caption.counts, length, pair.ends)
    noisy, written, predicted = _by_the_caption(pair, batch)
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
        "encoder_hidden_states of the caption": written,
        "noise prediction of the caption": predicted,
        "one-step latents": clean,
        "decoded image": pixels_hat,
        "logits of the decoded image": pair.predict(pixels_hat, batch.caption),
    }
    first = probabilities[: batch.caption.counts[0]].argmax(-1)
    return tensors, pair.captioner.processor.tokenizer.decode(first).strip()


def _by_the_caption(pair: TalkingPair, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy latents, what the generator reads of the caption, and the noise that it predicts by it."""
    noisy = pair.scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
    states = pair.text_encoder(batch.prompt_ids).last_hidden_state
    return noisy, states, pair.unet(noisy, batch.timesteps, states).sample


def _gradients(pair: TalkingPair, batch: Batch) -> tuple[list[float], list[list[float]], list[int]]:
    """Losses, gradient norms (loss by role) and numbers of trained weights."""
    parameters = unfreeze(pair)
    weights_of = [[p for name, p in parameters.items() if name.startswith(f"{role}.")] for role in ROLES]
    values = pair(batch)
    norms = [[norm(values[loss], weights) for weights in weights_of] for loss in LOSSES]
    return [values[loss].item() for loss in LOSSES], norms, [sum(p.numel() for p in weights) for weights in weights_of]


def norm(loss: Tensor, weights: list[Tensor]) -> float:
    """Euclidean norm of a loss's gradient at some weights; 0 where nothing arrives. The graph is kept."""
    gradients = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
    return sum(float(gradient.double().square().sum()) for gradient in gradients if gradient is not None) ** 0.5


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


# --- The two ways to train, on the same images.


@dataclass(frozen=True)
class TwoWays:
    """Both ways on the same images, captions, timesteps and noise, before any training."""

    timesteps: tuple[int, ...]
    # way -> loss -> `(timesteps, images)` Euclidean norm of its gradient at the generator's trained weights
    norms: dict[str, dict[str, np.ndarray]]
    losses: dict[str, dict[str, np.ndarray]]  # likewise the loss itself
    pictures: dict[str, np.ndarray]  # way -> `(timesteps, H, W, 3)` uint8, what the captioner reads of the first image
    image: np.ndarray  # `(H, W, 3)` uint8, the first image as the captioner reads it


def compare_ways(finetuner: Finetuner, timesteps: Sequence[int], count: int, seed: int = 0) -> TwoWays:
    """Each way on the first `count` training images, one by one, by the autoencoder's own decoder."""
    examples = finetuner.examples[:count]
    key = finetuner.models_key() | finetuner.images_key(examples) | {"timesteps": list(timesteps), "seed": seed}
    key |= {"captions": [list(example.references) for example in examples]}

    def make():
        pair, batch = one_batch(finetuner, Recipe(batch_size=count, seed=seed))
        weights = list(unfreeze(pair, ("generator",)).values())
        at = [[_at(batch, row, timestep) for row in range(count)] for timestep in timesteps]
        content = {"image": as_picture(pair, batch.pixel_values[:1])}
        for pair.way in WAYS:
            measured = [[_measure(pair, one, weights) for one in row] for row in at]
            content[f"measured {pair.way}"] = np.array(measured)  # timesteps, images, norm or value, losses
            content[f"pictures {pair.way}"] = np.stack([_picture(pair, row[0]) for row in at])
        return content, len(timesteps) * count

    content = finetuner.store.get(WAY_GRADIENTS, key, make)
    norms, values = (
        {
            way: dict(zip(GENERATORS_TURN, np.moveaxis(content[f"measured {way}"][:, :, k], 2, 0), strict=True))
            for way in WAYS
        }
        for k in range(2)
    )
    pictures = {way: content[f"pictures {way}"] for way in WAYS}
    return TwoWays(tuple(timesteps), norms, values, pictures, content["image"])


def _at(batch: Batch, row: int, timestep: int) -> Batch:
    part = batch.rows(slice(row, row + 1))
    return replace(part, timesteps=torch.full_like(part.timesteps, timestep))


def _measure(pair: TalkingPair, batch: Batch, weights: list[torch.nn.Parameter]) -> list[list[float]]:
    values = pair(batch, GENERATORS_TURN).values()
    return [[norm(loss, weights) for loss in values], [loss.item() for loss in values]]


@torch.no_grad()
def _picture(pair: TalkingPair, batch: Batch) -> np.ndarray:
    noisy, _, predicted = _by_the_caption(pair, batch)
    return as_picture(pair, pair.shown(batch, noisy, predicted))

"""The four losses against slow computations of their own; who learns from which; what the economies change."""

import copy
import functools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import plain_map
from diffusers import DDPMScheduler
from PIL import Image
from torch import nn

from dfl_utils.models import captioner as captioners
from dfl_utils.models import workshop
from dfl_utils.training import finetune
from dfl_utils.training.finetuned import load_pipeline
from dfl_utils.training.losses import (
    LOSSES,
    WAYS,
    Economy,
    TalkingPair,
    distributions,
    one_step_image,
    previous_latents,
)
from dfl_utils.training.pairs import Pairs
from dfl_utils.world import data, profile, scenes, splits

CAPTION, IMAGE_RECONSTRUCTION, GENERATION, TEXT_RECONSTRUCTION = LOSSES
TIMESTEPS = (5, 120, 480, 960)

# Appendix H: who is updated by what.
LEARNS = {
    CAPTION: {"captioner"},
    IMAGE_RECONSTRUCTION: {"captioner", "generator"},
    GENERATION: {"generator"},
    TEXT_RECONSTRUCTION: {"captioner", "generator"},
}


class Setting:
    """Captioner, generator, map and four pairs, whose captions have different lengths."""

    def __init__(self, name):
        models = profile.load("mini").pair(captioner=name)
        data.ensure(models)
        self.captioner, self.pipeline = captioners.load(models), load_pipeline(models)
        self.map = plain_map(self.captioner, self.pipeline)
        examples = data.load(models, "coco", "val")[:4]
        self.captions = [example.references[k % len(example.references)] for k, example in enumerate(examples)]
        pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in workshop.read(examples)])
        vae = self.pipeline.vae
        with torch.no_grad():
            latents = vae.encode(pixels / 127.5 - 1).latent_dist.mean * vae.config.scaling_factor
        pairs = Pairs(self.captioner, self.pipeline, examples, latents)
        chosen = [replace(e, references=(text,)) for e, text in zip(examples, self.captions, strict=True)]
        self.batch = replace(pairs.make(chosen, latents, seed=0), timesteps=torch.tensor(TIMESTEPS))
        # Each row's as `DDPMScheduler.step` draws it from the stream that the row's number seeds.
        drawn = [torch.randn(1, *latents.shape[1:], generator=torch.manual_seed(row)) for row in range(4)]
        self.batch = replace(self.batch, step_noise=torch.cat(drawn))
        self.pair = self.make()
        self.of = {way: self.turns(way) for way in WAYS}
        self.found = self.of["joint"]

    @torch.no_grad()
    def turns(self, way):
        """Every loss of a way, each in its turn."""
        pair, turns = self.make(way=way), WAYS[way]
        each = [pair(self.batch, turn) for turn in turns]
        assert [tuple(losses) for losses in each] == list(turns)
        return {name: loss.item() for losses in each for name, loss in losses.items()}

    def make(self, names=LOSSES, **options):
        return TalkingPair(self.captioner, self.pipeline, self.map, names, **options)

    def noisy(self, row):
        kept = self.pipeline.scheduler.alphas_cumprod[TIMESTEPS[row]]
        clean, noise = self.batch.latents[row : row + 1], self.batch.noise[row : row + 1]
        return kept.sqrt() * clean + (1 - kept).sqrt() * noise

    def predicted(self, row, prompt):
        return self.pipeline.unet(self.noisy(row), TIMESTEPS[row], prompt).sample

    def predicted_from_caption(self, row):
        prompt = self.pipeline.encode_prompt(self.captions[row], "cpu", 1, do_classifier_free_guidance=False)[0]
        return self.predicted(row, prompt)

    def squared_error(self, row, predicted):
        return np.square((predicted - self.batch.noise[row]).numpy().astype(np.float64)).mean()

    def steps(self, row, pixel_values):
        """The captioner's distributions at each token of caption `row`, one call a token, and the tokens."""
        embeds, read, said = self.captioner._encode(pixel_values), self.captioner._prompt_ids(), []
        tokens = self.captioner._caption_ids(self.captions[row]).tolist()
        for token in tokens:
            said.append(self.captioner._logits(embeds, torch.tensor([read]))[0, -1].double().softmax(0))
            read = [*read, token]
        return said, tokens

    def cross_entropy(self, images):
        """Mean over all tokens of all captions, in nats, of images `(1, 3, S, S)` each."""
        costs = []
        for row, pixel_values in enumerate(images):
            for probabilities, token in zip(*self.steps(row, pixel_values), strict=True):
                costs.append(-probabilities[token].log().item())
        return np.mean(costs)


prepared = functools.cache(Setting)


@pytest.fixture(params=["blip-base", "blip2"])
def setting(request):
    return prepared(request.param)


@pytest.fixture
def blip():
    return prepared("blip-base")


@pytest.fixture(params=WAYS)
def way(request):
    return request.param


# --- each loss by a slow way of its own -------------------------------------------------------------------
@torch.no_grad()
def test_the_caption_loss_is_the_cross_entropy_of_a_call_a_token(setting):
    by_hand = setting.cross_entropy(setting.batch.pixel_values.split(1))
    assert [found[CAPTION] for found in setting.of.values()] == pytest.approx([by_hand] * 2, rel=1e-4)


@torch.no_grad()
def test_the_image_reconstruction_loss_without_any_product(setting):
    """Word by word: the probabilities that fall on each generator token, its row that often, all rows added up."""
    encoder, tokenizer, errors = setting.pipeline.text_encoder, setting.pipeline.tokenizer, []
    table, index = encoder.get_input_embeddings().weight.double().numpy(), setting.map.index.numpy()
    for row in range(4):
        probabilities, _ = setting.steps(row, setting.batch.pixel_values[row : row + 1])
        ids = torch.full((1, tokenizer.model_max_length), tokenizer.eos_token_id)
        ids[0, 0] = tokenizer.bos_token_id
        embeds = table[ids.numpy()]
        for place, one in enumerate(probabilities[:-1], start=1):  # the captioner's end gives way to the generator's
            share = np.bincount(index, weights=one.numpy(), minlength=len(table))
            embeds[0, place] = (share[:, None] * table).sum(0)
        spoken = torch.from_numpy(embeds).float()
        hook = encoder.get_input_embeddings().register_forward_hook(lambda *_, spoken=spoken: spoken)
        prompt = encoder(ids).last_hidden_state
        hook.remove()
        errors.append(setting.squared_error(row, setting.predicted(row, prompt)))
    found = [losses[IMAGE_RECONSTRUCTION] for losses in setting.of.values()]
    assert found == pytest.approx([np.mean(errors)] * 2, rel=1e-4)


@torch.no_grad()
def test_the_generation_loss_is_one_call_of_the_unet_a_pair(setting):
    by_hand = [setting.squared_error(row, setting.predicted_from_caption(row)) for row in range(4)]
    found = [losses[GENERATION] for losses in setting.of.values()]
    assert found == pytest.approx([np.mean(by_hand)] * 2, rel=1e-4)


@torch.no_grad()
def test_the_text_reconstruction_loss_through_the_schedulers_own_step(setting, way):
    """Of the one-step image that a step estimates from the noisy latents, or of where a step from clean ones ends."""
    vae, processor = setting.pipeline.vae, setting.captioner.processor.image_processor
    mean, std = (np.reshape(value, (3, 1, 1)) for value in (processor.image_mean, processor.image_std))
    images = []
    for row, timestep in enumerate(TIMESTEPS):
        predicted = setting.predicted_from_caption(row)
        start = setting.noisy(row) if way == "joint" else setting.batch.latents[row : row + 1]
        step = setting.pipeline.scheduler.step(predicted, timestep, start, generator=torch.manual_seed(row))
        read = step.pred_original_sample if way == "joint" else step.prev_sample
        drawn = vae.decode(read / vae.config.scaling_factor).sample.numpy() * 0.5 + 0.5
        images.append(torch.from_numpy((drawn - mean) / std).float())
    assert setting.of[way][TEXT_RECONSTRUCTION] == pytest.approx(setting.cross_entropy(images), rel=2e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_alone_is_the_same_as_among_the_four(setting, name):
    alone = setting.make((name,))(setting.batch)
    assert list(alone) == [name] and alone[name].item() == pytest.approx(setting.found[name], rel=1e-5)


# --- who learns from what ---------------------------------------------------------------------------------
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_reaches_the_weights_that_appendix_h_says(setting, name, way):
    pair = setting.make((name,), way=way)
    trained = finetune.unfreeze(pair)
    pair(setting.batch)[name].backward()
    reached = {part for part, weight in trained.items() if weight.grad is not None}
    # All weights of a role or none of them; a bias of the queries too.
    assert reached == {part for part in trained if part.partition(".")[0] in LEARNS[name]}
    assert all(trained[part].grad.abs().sum() > 0 for part in reached)
    frozen = [weight for weight in pair.parameters() if not weight.requires_grad]
    assert len(frozen) + len(trained) == len(list(pair.parameters()))
    assert all(weight.grad is None for weight in frozen)
    pair.zero_grad(set_to_none=True)


@pytest.mark.parametrize(
    ("name", "way"),
    [(IMAGE_RECONSTRUCTION, "joint"), (TEXT_RECONSTRUCTION, "joint"), (TEXT_RECONSTRUCTION, "alternating")],
)
@pytest.mark.parametrize("role", ["captioner", "generator"])
def test_the_gradient_of_a_reconstruction_is_its_slope(blip, name, way, role):
    """Central differences in float64, along the gradient itself."""
    pair = copy.deepcopy(blip.make((name,), way=way)).double()
    trained = list(finetune.unfreeze(pair, (role,)).values())
    batch = blip.batch.rows(slice(1, 2))
    batch = replace(
        batch,
        pixel_values=batch.pixel_values.double(),
        latents=batch.latents.double(),
        noise=batch.noise.double(),
        step_noise=batch.step_noise.double(),
    )
    gradient = torch.autograd.grad(pair(batch)[name], trained)
    norm = torch.cat([part.flatten() for part in gradient]).norm()

    @torch.no_grad()
    def moved(step):
        for weight, part in zip(trained, gradient, strict=True):
            weight.add_(part, alpha=step / norm.item())
        return pair(batch)[name].item()

    ahead, behind = moved(1e-4), moved(-2e-4)
    assert (ahead - behind) / 2e-4 == pytest.approx(norm.item(), rel=1e-4)


# --- the step of the way `alternating` -----------------------------------------------------------------------
FIVE = (0, 1, 120, 480, 999)


def weights_by_hand():
    """Of the one-step estimate in a DDPM step, at `FIVE`: betas rise linearly in their roots from 0.00085 to 0.012."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    kept = [np.prod(1 - betas[: t + 1]) for t in FIVE]
    before = [np.prod(1 - betas[:t]) for t in FIVE]
    return [b**0.5 * betas[t] / (1 - k) for t, k, b in zip(FIVE, kept, before, strict=True)]


def test_what_arrives_at_the_queries_has_the_weight_of_the_estimate_in_the_step(blip):
    """The gradient of one and the same image gradient: nearly all is lost on its way through the step."""
    weights = weights_by_hand()
    assert weights[0] == pytest.approx(1) and weights == sorted(weights, reverse=True)
    assert weights[1] == pytest.approx(0.501, abs=0.001) and weights[-1] == pytest.approx(0.00083, abs=1e-5)
    pair, batch = blip.make(), blip.batch.rows(slice(0, 1))
    trained = list(finetune.unfreeze(pair, ("generator",)).values())
    prompt = pair.text_encoder(batch.prompt_ids).last_hidden_state.detach()
    for timestep, weight in zip(FIVE, weights, strict=True):
        steps = torch.tensor([timestep])
        noisy = pair.scheduler.add_noise(batch.latents, batch.noise, steps)
        predicted = pair.unet(noisy, steps, prompt).sample
        read = [
            one_step_image(pair.scheduler, noisy, steps, predicted),
            previous_latents(pair.scheduler, batch.latents, steps, predicted, batch.step_noise),
        ]
        sums = [(latents * batch.noise).sum() for latents in read]  # the gradient at the latents is the noise
        joint, alternating = (torch.autograd.grad(one, trained, retain_graph=True) for one in sums)
        for own, other in zip(joint, alternating, strict=True):
            torch.testing.assert_close(other, weight * own, rtol=2e-3, atol=1e-3 * weight * own.abs().max().item())


# --- economies --------------------------------------------------------------------------------------------
def test_a_threshold_leaves_the_loss_and_its_gradient_where_they_are(blip):
    """A dropped token has at most 1e-6 in each row; what they have together bounds the change of an embedding."""
    pair = blip.make((IMAGE_RECONSTRUCTION,), economy=Economy(threshold=1e-6))
    trained = list(finetune.unfreeze(pair, ("captioner",)).values())
    loss = pair(blip.batch)[IMAGE_RECONSTRUCTION]
    assert abs(loss.item() - blip.found[IMAGE_RECONSTRUCTION]) < 1e-4
    exact = torch.autograd.grad(blip.make((IMAGE_RECONSTRUCTION,))(blip.batch)[IMAGE_RECONSTRUCTION], trained)
    for part, own in zip(torch.autograd.grad(loss, trained), exact, strict=True):
        assert (part - own).norm() < 1e-3 * own.norm()


@torch.no_grad()
def test_a_share_is_the_first_rows_told_and_the_last_rows_read(setting):
    half = setting.make(economy=Economy(share=0.5))(setting.batch)
    for name in (CAPTION, GENERATION):
        assert half[name].item() == pytest.approx(setting.found[name], rel=1e-5)
    first, last = (setting.pair(setting.batch.rows(part)) for part in (slice(0, 2), slice(2, 4)))
    assert half[IMAGE_RECONSTRUCTION].item() == pytest.approx(first[IMAGE_RECONSTRUCTION].item(), rel=1e-4)
    assert half[TEXT_RECONSTRUCTION].item() == pytest.approx(last[TEXT_RECONSTRUCTION].item(), rel=1e-4)
    # Squared errors count every pair alike, cross-entropies every token: so do the halves make up the whole.
    both = (first[IMAGE_RECONSTRUCTION] + last[IMAGE_RECONSTRUCTION]).item() / 2
    assert both == pytest.approx(setting.found[IMAGE_RECONSTRUCTION], rel=1e-4)
    tokens = [len(setting.batch.caption.rows(part).targets) for part in (slice(0, 2), slice(2, 4))]
    both = np.average([part[TEXT_RECONSTRUCTION].item() for part in (first, last)], weights=tokens)
    assert both == pytest.approx(setting.found[TEXT_RECONSTRUCTION], rel=1e-4)


@pytest.mark.parametrize("wrong", [{"share": 0.0}, {"threshold": 1.0}])
def test_an_economy_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match="a share lies above 0 and not above 1, a threshold from 0 to below 1"):
        Economy(**wrong)


# --- drawn words ------------------------------------------------------------------------------------------
@torch.no_grad()
def test_a_drawn_caption_is_told_as_its_tokens(blip):
    batch, tokenizer = blip.batch, blip.pipeline.tokenizer
    logits = blip.pair.predict(batch.pixel_values, batch.caption)[batch.caption.words]
    stream = torch.Generator().manual_seed(batch.seed + 1)
    drawn = distributions(logits, "gumbel", generator=stream).argmax(1)
    rows = blip.map.index[drawn].split(list(batch.caption.counts))
    ids = torch.full_like(batch.prompt_ids, tokenizer.eos_token_id)
    ids[:, 0] = tokenizer.bos_token_id
    for own, row in zip(ids, rows, strict=True):
        own[1 : len(row) + 1] = row
    prompts = blip.pipeline.text_encoder(ids).last_hidden_state.split(1)
    by_hand = [blip.squared_error(row, blip.predicted(row, prompt)) for row, prompt in enumerate(prompts)]
    found = blip.make((IMAGE_RECONSTRUCTION,), connect="gumbel")(batch)
    assert found[IMAGE_RECONSTRUCTION].item() == pytest.approx(np.mean(by_hand), rel=1e-4)
    again = blip.make((IMAGE_RECONSTRUCTION,), connect="gumbel")(replace(batch, seed=batch.seed + 1))
    assert again[IMAGE_RECONSTRUCTION].item() != found[IMAGE_RECONSTRUCTION].item()


def test_a_threshold_takes_no_gradient_from_a_drawn_caption(blip):
    """The one-hot draw shows one column a word, its gradient flows through all of them."""
    exact = blip.make((IMAGE_RECONSTRUCTION,), connect="gumbel")
    saving = blip.make((IMAGE_RECONSTRUCTION,), connect="gumbel", economy=Economy(threshold=1e-6))
    trained = list(finetune.unfreeze(exact, ("captioner",)).values())
    for own, part in zip(
        *(torch.autograd.grad(pair(blip.batch)[IMAGE_RECONSTRUCTION], trained) for pair in (exact, saving)), strict=True
    ):
        torch.testing.assert_close(part, own)


# --- pixels -----------------------------------------------------------------------------------------------
class Printer(nn.Module):
    """A decoder that shows one picture, whatever the latents."""

    def __init__(self, image):
        super().__init__()
        self.config = SimpleNamespace(scaling_factor=1.0)
        self.image = torch.from_numpy(image).permute(2, 0, 1).unsqueeze(0) / 127.5 - 1

    def decode(self, latents):
        return SimpleNamespace(sample=self.image)


@pytest.mark.parametrize("side", [64, 24])
def test_a_decoded_image_reaches_the_captioner_as_through_its_processor(blip, side):
    image = scenes.render(next(splits.items("coco", "val")).scene) // 2 + 64  # no level beyond 0 or 255 when resized
    pair, processor = blip.make(decoder=Printer(image)), blip.captioner.processor.image_processor
    own = processor(Image.fromarray(image), size={"height": side, "width": side}, return_tensors="pt").pixel_values
    found = pair.as_pixel_values(blip.batch.latents[:1], (side, side))
    # Pillow rounds a resized image to whole levels, after its rows and after its columns.
    levels = 0 if side == len(image) else 2
    assert (found - own).abs().max() <= levels / 255 / min(processor.image_std) + 1e-5


# --- bad input --------------------------------------------------------------------------------------------


def test_a_generator_that_predicts_no_noise_is_refused(blip):
    own = blip.pipeline
    scheduler = DDPMScheduler.from_config(own.scheduler.config, prediction_type="v_prediction")
    other = SimpleNamespace(**own.components | {"scheduler": scheduler})
    with pytest.raises(ValueError, match="predicts v_prediction.*one that predicts noise"):
        TalkingPair(blip.captioner, other, blip.map)
    with pytest.raises(ValueError, match="vocabulary_map is a Tensor, such as a file of the authors' code"):
        TalkingPair(blip.captioner, own, blip.map.index)

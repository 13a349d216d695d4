"""The batches of the finetuning: every image once an epoch, nothing but seed and step, and captions that both read."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import plain_map
from PIL import Image

from dfl_utils.models import captioner as captioners
from dfl_utils.models.workshop import Workshop, read
from dfl_utils.store.store import RunStore
from dfl_utils.training import pairs
from dfl_utils.training.finetuned import load_pipeline
from dfl_utils.training.losses import TalkingPair
from dfl_utils.training.pairs import Pairs
from dfl_utils.world import data


@pytest.fixture(scope="module")
def examples(mini):
    return data.subset(data.load(mini, "coco", "val"), 10, seed=0)


@pytest.fixture(scope="module")
def captioner(mini):
    return captioners.load(mini)


@pytest.fixture(scope="module")
def pipeline(mini):
    return load_pipeline(mini)


@pytest.fixture(scope="module")
def make(captioner, pipeline, examples):
    """Pairs whose latents are the number of their image."""
    numbers = torch.arange(len(examples)).float().view(-1, 1, 1, 1).expand(-1, 8, 8, 8)
    return lambda **options: Pairs(captioner, pipeline, examples, numbers, **options)


def images_of(batch):
    return batch.latents[:, 0, 0, 0].int().tolist()


def same(one, other):
    names = ("pixel_values", "prompt_ids", "latents", "timesteps", "noise")
    return one.caption.counts == other.caption.counts and all(
        torch.equal(getattr(one, name), getattr(other, name)) for name in names
    )


# --- latents ----------------------------------------------------------------------------------------------
@torch.no_grad()
def test_latents_are_the_autoencoders_mean_made_once(mini, pipeline, examples, tmp_path, monkeypatch):
    found = pairs.latents(Workshop(mini, RunStore(tmp_path), progress=False), pipeline, examples[:3])
    assert found.dtype == torch.float32 and found.is_contiguous()
    for row, image in zip(found, read(examples[:3]), strict=True):
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).unsqueeze(0) / 127.5 - 1
        mean = pipeline.vae.encode(pixels).latent_dist.mean[0]
        torch.testing.assert_close(row, mean * pipeline.vae.config.scaling_factor, atol=1e-4, rtol=1e-4)
    monkeypatch.setattr(pipeline.vae, "encode", lambda *_: pytest.fail("the autoencoder was run again"))
    again = pairs.latents(Workshop(mini, RunStore(tmp_path), progress=False), pipeline, examples[:3])
    assert torch.equal(again, found)


@torch.no_grad()
def test_latents_of_a_photo_are_of_its_middle(mini, pipeline, examples, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    photo, middle = tmp_path / "photo.png", tmp_path / "middle.png"
    Image.fromarray(noise).save(photo)
    Image.fromarray(noise[:, 16:80]).save(middle)
    shop = Workshop(mini, RunStore(tmp_path), progress=False)
    wide, square = pairs.latents(shop, pipeline, [replace(examples[0], path=path) for path in (photo, middle)])
    torch.testing.assert_close(wide, square)


def test_captions_are_cleaned_as_blip_cleans_them(examples):
    texts = ('A Man\'s hat (red); "so"... #1 ~ *no*: yes!', "WORD " * 31, "...")
    expected = "a man's hat red so 1 no yes", " ".join(["word"] * 30)
    assert pairs.cleaned(replace(examples[0], references=texts)).references == expected


# --- parts of batches -------------------------------------------------------------------------------------
def test_rows_of_a_batch_are_what_they_are_in_the_whole(make):
    """Images, captions, prompts, latents and all noise; the padding alone may be shorter."""
    lessons = make(batch_size=5)
    whole, counts = lessons.batch(1), lessons.counts(1)
    assert counts == whole.caption.counts and whole.words_before == 0
    for rows in (slice(0, 2), slice(2, 3), slice(3, 5)):
        part = lessons.batch(1, rows)
        for name in ("pixel_values", "prompt_ids", "latents", "timesteps", "noise"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[rows])
        assert torch.equal(part.caption.targets, whole.caption.rows(rows).targets)
        assert part.caption.counts == counts[rows] and part.words_before == sum(counts[: rows.start])
        assert part.seed == whole.seed


def test_a_draw_passes_over_what_was_drawn_for_the_captions_before(captioner, pipeline, make, monkeypatch):
    """The same uniforms for a word, whether its caption is drawn with those before it or after them."""
    drawn, rand = [], torch.rand
    monkeypatch.setattr(torch, "rand", lambda *a, **k: drawn.append(rand(*a, **k)) or drawn[-1])
    lessons = make(batch_size=4)
    made, size = plain_map(captioner, pipeline), captioner.model.config.text_config.vocab_size
    pair = TalkingPair(captioner, pipeline, made, ("image_reconstruction_loss",), connect="gumbel")
    for batch in (lessons.batch(0), lessons.batch(0, slice(3, 4))):
        words = torch.zeros(len(batch.caption.targets), size)
        pair.soft_prompt(words, batch.caption, batch.prompt_ids.shape[1], batch.seed, batch.words_before)
    before = sum(lessons.counts(0)[:3])
    assert torch.equal(drawn[-1], drawn[0][before:])


# --- batches ----------------------------------------------------------------------------------------------
def test_an_epoch_shows_every_image_once(make):
    lessons = make(batch_size=4)
    assert lessons.steps_per_epoch == 3
    epochs = [[n for step in range(3) for n in images_of(lessons.batch(3 * epoch + step))] for epoch in range(2)]
    for shown in epochs:
        assert sorted(shown[:10]) == list(range(10)) and shown[10:] == shown[:2]  # filled up from its beginning
    assert epochs[0] != epochs[1]


def test_a_batch_depends_on_seed_and_step_alone(make):
    lessons = make(batch_size=4)
    fourth = lessons.batch(4)
    lessons.batch(1)
    assert same(lessons.batch(4), fourth) and same(make(batch_size=4).batch(4), fourth)
    assert not same(lessons.batch(5), fourth) and not same(make(batch_size=4, seed=1).batch(4), fourth)


def test_an_image_stands_beside_one_of_its_own_captions(make, captioner, pipeline, examples):
    """Pixels, prompt and caption of a row belong to the image of its latents; each caption has its turn."""
    lessons, said = make(batch_size=5), {number: set() for number in range(10)}
    processor = captioner.processor.image_processor
    known = [
        dict(zip(map(tuple, pairs.prompt_ids(pipeline, e.references).tolist()), e.references, strict=True))
        for e in examples
    ]
    for step in range(12):
        batch = lessons.batch(step)
        rows = zip(images_of(batch), batch.prompt_ids.tolist(), strict=True)
        texts = [known[number][tuple(row)] for number, row in rows]
        own = pairs.read_captions(captioner, texts)
        assert torch.equal(own.targets, batch.caption.targets) and own.counts == batch.caption.counts
        for number, text in zip(images_of(batch), texts, strict=True):
            said[number].add(text)
        expected = processor(read([examples[n] for n in images_of(batch)]), return_tensors="pt").pixel_values
        assert torch.equal(batch.pixel_values, expected)
    different = [len(said[n]) / len(set(examples[n].references)) for n in said]
    assert np.mean(different) > 0.5 and all(len(texts) > 1 for texts in said.values())


# --- bad input --------------------------------------------------------------------------------------------
def refused(captioner, pipeline, example, *references):
    with pytest.raises(ValueError) as error:
        pairs.check(captioner, pipeline, [example, replace(example, image_id=77, references=references)])
    return str(error.value)


def test_a_caption_that_just_fits_passes_and_one_token_more_does_not(captioner, pipeline, examples):
    """30 tokens between [BOS] and [EOS] fill the mini generator's 32 positions, as 75 fill Stable Diffusion's 77."""
    room = pipeline.tokenizer.model_max_length
    pairs.check(captioner, pipeline, [replace(examples[0], references=("key " * (room - 2),))])
    told = refused(captioner, pipeline, examples[0], "a key", "key " * (room - 1))
    assert told == (
        f"Image 77 has a caption of {room + 1} tokens, and the generator reads {room}: shorten it or leave it out."
    )


def test_a_caption_whose_captioner_tokens_do_not_fit_is_refused(captioner, pipeline, examples):
    """The generator is told one row for each token of the captioner, which cuts a giraffe into three."""
    text = "giraffe " * 13
    own, other = (
        model.tokenizer(text, add_special_tokens=False).input_ids for model in (captioner.processor, pipeline)
    )
    assert len(other) <= 30 < len(own)
    told = refused(captioner, pipeline, examples[0], text)
    assert f"a caption of {len(own) + 2} tokens" in told


def test_a_caption_that_cannot_be_read_is_refused(captioner, pipeline, examples):
    room = captioner._positions() - len(captioner._prompt_ids())
    told = refused(captioner, pipeline, examples[0], "key " * 60)
    assert told.startswith(f"Image 77 has a caption of {room + 1} tokens, and the captioner reads {room}: shorten it")
    for references in (), ("a key", " "):
        told = refused(captioner, pipeline, examples[0], *references)
        assert told == "Image 77 has no caption to learn from, or an empty one: leave it out."

"""Reranking one's own candidates: against the parts, in any order and company, resumed, and with bad input."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import dfl_utils
from dfl_utils.build import cli
from dfl_utils.game import denoising, loops, rerank
from dfl_utils.game.scorer import Scorer
from dfl_utils.store.store import RunStore
from dfl_utils.world import data
from dfl_utils.world.profile import MINI

CAPTIONS = [
    ["a red dog", "a blue cup", "a red dog"],
    ["a small yellow star", "a black umbrella"],
    [f"{colour} {thing}" for colour in ("a red", "a blue", "a green") for thing in ("dog", "cup", "star", "plane")],
]
ROUNDING = 1e-3  # of a cosine, where some pixels differ by one level
TEXTS = ["a red dog", "a blue cup and a star"]


@pytest.fixture(scope="module")
def paths(mini):
    return [example.path for example in data.load(mini, "nocaps", "overall")[:3]]


@pytest.fixture(scope="module")
def hall(mini, tmp_path_factory):
    """The game whose loaded models all calls borrow."""
    return loops.Game(mini, RunStore(tmp_path_factory.mktemp("hall")), progress=False)


@pytest.fixture(autouse=True)
def borrowed(hall, monkeypatch):
    def game(models, store, **options):
        made = loops.Game(models, store, **options)
        if replace(models, num_inference_steps=hall.profile.num_inference_steps) == hall.profile:
            made._loaded = hall._loaded
            made.generator.num_inference_steps = made.profile.num_inference_steps
        return made

    monkeypatch.setattr(rerank, "Game", game)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def ask(mini, store):
    """A call of the two functions with few steps and the module's store."""

    def call(function, *values, **options):
        return function(*values, **{"profile": replace(mini, num_inference_steps=2), "store": store} | options)

    return call


def plain(rows):
    """All that a result says but the picture, by similarity."""
    said = [[{name: value for name, value in vars(r).items() if name != "_load"} for r in row] for row in rows]
    return [sorted(tuple(sorted(fields.items())) for fields in row) for row in said]


def test_captions_are_ranked_by_the_cosine_of_their_drawing(ask, hall, paths):
    ranked = ask(dfl_utils.rerank_captions, paths, CAPTIONS)
    clip = hall.encoder("clip")
    for path, row, given in zip(paths, ranked, CAPTIONS, strict=True):
        sims = [entry.similarity for entry in row]
        assert sims == sorted(sims, reverse=True) and [entry.rank for entry in row] == list(range(len(given)))
        assert [given[entry.candidate] for entry in row] == [entry.caption for entry in row]
        original = clip.embed([data.read_image(path)])
        hats = clip.embed([entry.image_hat for entry in row])
        np.testing.assert_allclose(sims, hats @ original[0], atol=1e-5)


def test_equal_captions_have_one_drawing_and_keep_their_order(ask, paths):
    (row,) = ask(rerank.rerank_captions, paths[:1], CAPTIONS[:1])
    first, second = (entry for entry in row if entry.caption == "a red dog")
    assert (first.candidate, second.candidate) == (0, 2) and first.similarity == second.similarity
    np.testing.assert_array_equal(first.image_hat, second.image_hat)


def test_neither_company_nor_order_changes_more_than_a_rounding(ask, paths, tmp_path):
    """A batch of another size takes other kernels on some processors: a pixel may then be rounded to its neighbour."""
    together = ask(rerank.rerank_captions, paths, CAPTIONS)
    alone = [
        ask(rerank.rerank_captions, [path], [row], store=tmp_path / "alone")[0]
        for path, row in zip(paths, CAPTIONS, strict=True)
    ]
    for mine, theirs in zip(together, alone, strict=True):
        assert [entry.candidate for entry in mine] == [entry.candidate for entry in theirs]
        assert [e.similarity for e in mine] == pytest.approx([e.similarity for e in theirs], abs=ROUNDING)
    turned = [row[::-1] for row in CAPTIONS[::-1]]
    other = ask(rerank.rerank_captions, paths[::-1], turned, store=tmp_path / "turned")[::-1]
    for mine, theirs in zip(together, other, strict=True):
        by_caption = {entry.caption: entry for entry in theirs}
        for entry in mine:
            assert entry.similarity == pytest.approx(by_caption[entry.caption].similarity, abs=ROUNDING)
            pixels = (np.asarray(e.image_hat, int) for e in (entry, by_caption[entry.caption]))
            assert abs(np.subtract(*pixels)).max() <= 1
        assert [entry.caption for entry in mine] == [entry.caption for entry in theirs]


def test_pictures_in_memory_are_as_good_as_files(ask, paths, store):
    files = ask(rerank.rerank_captions, paths[:2], CAPTIONS[:2])
    pictures = [Image.open(paths[0]), str(paths[1])]
    assert plain(ask(rerank.rerank_captions, pictures, CAPTIONS[:2])) == plain(files)
    (kept,) = (store / "originals").iterdir()
    np.testing.assert_array_equal(data.read_image(kept), data.read_image(paths[0]))


def test_without_captions_the_captioner_samples_them(ask, hall, paths):
    (row,) = ask(rerank.rerank_captions, paths[:1], num_candidates=3)
    (sampled,) = hall.sample_captions([rerank.on_disk(paths[0], hall.store)], 3)
    assert [entry.caption for entry in sorted(row, key=lambda entry: entry.candidate)] == sampled


def test_drawn_images_are_ranked_by_what_is_read_in_them(ask, hall, mini):
    ranked = ask(dfl_utils.rerank_images, TEXTS, num_candidates=2)
    scorer = Scorer(mini, hall.store, [data.Example(0, "", ("a dog",))])
    for text, row in zip(TEXTS, ranked, strict=True):
        sims = scorer.similarity([text], [[entry.caption_hat for entry in row]], ["clip"])["clip"][0]
        np.testing.assert_allclose([entry.similarity for entry in row], sims, atol=1e-5)
        assert [entry.rank for entry in row] == [0, 1] and sims[0] >= sims[1]
        assert [entry.caption_hat for entry in row] == hall.captioner.describe([entry.image for entry in row])
    alone = ask(rerank.rerank_images, TEXTS[1:], num_candidates=2)
    assert plain(alone) == plain(ranked[1:])


def test_given_images_are_ranked_as_drawn_ones(ask, paths, tmp_path):
    drawn = ask(rerank.rerank_images, TEXTS, num_candidates=2)
    pictures = [[entry.image for entry in sorted(row, key=lambda entry: entry.candidate)] for row in drawn]
    given = ask(rerank.rerank_images, TEXTS, pictures)
    assert plain(given) == plain(drawn)
    np.testing.assert_array_equal(given[0][0].image, drawn[0][0].image)
    mixed = ask(rerank.rerank_images, TEXTS, [[paths[0], pictures[0][1], paths[0]], pictures[1][:1]])
    assert [len(row) for row in mixed] == [3, 1]
    twice = [entry for entry in mixed[0] if entry.candidate != 1]
    assert twice[0].similarity == twice[1].similarity and [e.candidate for e in twice] == [0, 2]
    turned = ask(rerank.rerank_images, TEXTS[::-1], [pictures[1], pictures[0][::-1]], store=tmp_path)[::-1]
    assert [[e.similarity for e in row] for row in turned] == [[e.similarity for e in row] for row in given]


def test_captions_are_ranked_by_the_loss_and_drawn_when_they_are_looked_at(ask, hall, paths, tmp_path, caplog):
    ranked = ask(dfl_utils.rerank_captions, paths, CAPTIONS, judge="denoising", store=tmp_path)
    for path, row, given in zip(paths, ranked, CAPTIONS, strict=True):
        shown = [rerank.on_disk(path, hall.store)]
        (losses,) = denoising.losses(hall, shown, [[e.caption for e in row]])
        np.testing.assert_allclose([entry.similarity for entry in row], -losses.mean(axis=1), atol=1e-6)
        assert [given[entry.candidate] for entry in row] == [entry.caption for entry in row]
    assert not list(tmp_path.glob("images-*"))
    drawn = ask(dfl_utils.rerank_captions, paths[:1], CAPTIONS[:1], store=tmp_path)[0]
    assert {e.caption: e.image_hat.tobytes() for e in drawn} == {e.caption: e.image_hat.tobytes() for e in ranked[0]}
    ask(dfl_utils.rerank_captions, paths[:1], [["a cup"]], judge="denoising", store=tmp_path)
    assert "1 images have a single candidate: what denoising says of it tells nothing alone" in caplog.text


def test_captions_and_images_are_ranked_by_their_likelihood(ask, hall, paths):
    captions = ask(dfl_utils.rerank_captions, paths[:1], CAPTIONS[1:2], judge="likelihood")[0]
    shown = [rerank.on_disk(path, hall.store) for path in paths]
    expected = hall.log_likelihood(shown[:1], [[entry.caption for entry in captions]])[0]
    np.testing.assert_allclose([entry.similarity for entry in captions], expected, atol=1e-5)
    (images,) = ask(dfl_utils.rerank_images, TEXTS[:1], [paths], judge="likelihood")
    expected = hall.log_likelihood(shown, [TEXTS[:1]] * 3)[:, 0]
    np.testing.assert_allclose([entry.similarity for entry in images], sorted(expected, reverse=True), atol=1e-5)
    assert [entry.candidate for entry in images] == list(np.argsort(-expected)) and images[0].caption_hat is None
    drawn = ask(dfl_utils.rerank_images, TEXTS, num_candidates=2, judge="likelihood")
    pictures = [[entry.image for entry in row] for row in drawn]
    given = ask(dfl_utils.rerank_images, TEXTS, pictures, judge="likelihood")
    for some, others in zip(drawn, given, strict=True):
        np.testing.assert_allclose([e.similarity for e in some], [e.similarity for e in others], atol=1e-5)


def test_more_captions_cost_their_own_drawings_and_fewer_none(ask, paths, tmp_path):
    captions, made = [f"a red dog {k}" for k in range(10)], []
    for texts in (captions, ["a cat", *captions], captions[3:6]):
        row = ask(rerank.rerank_captions, paths[:1], [texts], store=tmp_path)[0]
        assert {entry.caption for entry in row} == set(texts)
        made.append(len(list(tmp_path.glob("images-*"))))
    assert made == [10, 11, 11]


@pytest.mark.parametrize("size", [(100, 80), (64, 1)])
def test_a_picture_of_any_shape_is_ranked(ask, size):
    picture = Image.linear_gradient("L").resize(size).convert("RGB")
    (row,) = ask(rerank.rerank_captions, [picture], [["a red dog"]])
    assert -1 <= row[0].similarity <= 1


def test_texts_that_a_model_sees_in_part_are_said(ask, paths, caplog):
    long = "a red dog " * 20
    ask(rerank.rerank_captions, paths[:1], [[long, "a cup"]])
    said = f"reads only the first 32 tokens of 1 longer texts, such as {long!r}"
    assert caplog.messages == [f"the text encoder of generator {said}"]
    ask(rerank.rerank_images, [long], [paths[:1]])
    assert caplog.messages[1:] == [f"the text encoder of clip {said}"]


def test_the_embedded_models_say_once_that_a_photograph_is_none_of_theirs(ask, paths, caplog):
    rerank._say_once.cache_clear()
    photograph = Image.linear_gradient("L").resize((120, 90)).convert("RGB")
    ask(rerank.rerank_captions, paths[:1], [["a cup"]])
    assert "48 drawn icons" not in caplog.text
    for _ in range(2):
        ask(rerank.rerank_captions, [photograph, paths[0]], [["a red dog"], ["a cup"]])
    assert caplog.text.count("The generator, clip of data/mini know 48 drawn icons and nothing else") == 1


def test_the_command_writes_a_table_and_a_page(mini, paths, tmp_path, monkeypatch, capsys):
    (tmp_path / "images").mkdir()
    for path in paths[:2]:
        shutil.copy(path, tmp_path / "images")
    names = sorted(path.name for path in paths[:2])
    captions = [{"file": names[0], "caption": ["a <red> dog", "a, cup"]}, {"file": names[1], "caption": "a star"}]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, captions)))
    monkeypatch.setenv("DFL_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    words = ["rerank", "images", "c.jsonl", "-o", "r.csv", "--html", "r.html", "-p", "num_inference_steps", "2"]
    assert cli.main(words) == 0
    table = pd.read_csv(tmp_path / "r.csv")
    assert list(table.columns) == ["file", "rank", "similarity", "caption"] and list(table["rank"]) == [0, 1, 0]
    assert list(table.file) == [names[0], *names] and set(table.caption[:2]) == {"a <red> dog", "a, cup"}
    page = (tmp_path / "r.html").read_text()
    assert page.count('<img src="data:image/webp;base64,') == 5 and "a &lt;red&gt; dog" in page
    assert capsys.readouterr().out == "written: r.csv\nwritten: r.html\n"
    assert cli.main(["rerank", "images", "--candidates", "2", "-p", "num_inference_steps", "1"]) == 0
    assert len(pd.read_csv(tmp_path / "ranked.csv")) == 4
    capsys.readouterr()
    assert cli.main(["rerank", "images", "c.jsonl", "--judge", "likelihood"]) == 0
    assert (pd.read_csv(tmp_path / "ranked.csv").similarity < 0).all() and "drawings" not in capsys.readouterr().err
    amused = str(MINI / "amused")
    for words, said in (
        (["none"], "none is no folder of images"),
        (["images", "-o", "none/r.csv"], "none/r.csv cannot be written: name a file in a folder that is there"),
        (["images", "-p", "top_p", "7"], "top_p of a profile is 7.0: give more than 0"),
        (["images", "c.jsonl", "--judge", "denoising", "-p", "generator", amused], "which cannot be asked for its"),
    ):
        assert cli.main(["rerank", *words]) == 2
        assert said in capsys.readouterr().err


# --- bad input ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("images", "captions", "options", "sentence"),
    [
        ("a.png", [["a"]], {}, "images is of type str: give a list of files"),
        (["a.png"], [["a"], ["b"]], {}, "captions has 2 entries for 1 images or texts: give a list of captions"),
        (["a.png"], [[]], {}, r"captions\[0\] is empty"),
        (["a.png"], [["a", " "]], {}, r"captions\[0\]\[1\] is blank: write something, or leave it out"),
        (["a.png"], [["a"]], {"similarity": "sbert"}, "similarity is 'sbert': choose one of clip, dino"),
        (["a.png"], [["a"]], {"judge": "reading"}, "judge is 'reading': choose one of drawing, denoising, likelihood"),
        (["a.png"], [["a"]], {"judge": "denoising", "generator": "amused"}, "AmusedPipeline, which cannot be asked"),
        (["a.png"], None, {"num_candidates": 0}, "num_candidates or num_beams is 0: give at least 1"),
        (["a.png"], [["a"]], {"generator": "my/sd"}, "There is no model folder .*my/sd"),
    ],
)
def test_what_cannot_be_ranked_is_named(ask, images, captions, options, sentence):
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=sentence) as caught:
        ask(rerank.rerank_captions, images, captions, **options)
    assert "\n" not in str(caught.value)

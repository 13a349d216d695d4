"""The page "The scores": each example that it works by hand is what the package computes."""

import re

import numpy as np
import pytest

from dfl_utils.scores import image_sets, intervals, ngrams, ranking, scene_graphs, truth, word_mover
from dfl_utils.scores.ranking import Estimate
from dfl_utils.store import provenance
from dfl_utils.world.scenes import Scene, Thing

PAGE = (provenance.ROOT / "book" / "scores.md").read_text(encoding="utf-8")
SECTIONS = {title: text for title, text in re.findall(r"^### (.*?)\n(.*?)(?=^#|\Z)", PAGE, re.DOTALL | re.MULTILINE)}
RED = [["a red cup"]], [["a red dog"]]
A, B = np.array([1, 0]), np.array([0.6, 0.8])


def bleu(n: int) -> float:
    return float(ngrams.corpus_bleu(ngrams.bleu_statistics(*RED)[0, 0])[n - 1])


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    """The three words of the page, in word2vec's text format."""
    path = tmp_path_factory.mktemp("vectors") / "three.txt"
    path.write_text("3 2\nred 1 0\ndog 0 1\ncup 0.6 0.8\n")
    return path


def facts() -> list[float]:
    scene = Scene((Thing("dog", "red", "small", 0, 0), Thing("cup", "blue", "small", 4, 0)), "white", "beside")
    found = truth.truth([scene], [["a blue dog"]])
    return [score[0, 0] for score in (found.invented, found.omitted, found.truth)]


FIRST = np.array([[3.0, 2, 1]]), np.array([[5.0, 1, 3]])  # similarities and qualities of three candidates
SURE = np.log(np.eye(2) + 1e-30)
COMPUTED = {
    "CIDEr": lambda: [ngrams.Cider([["a red dog"], ["a blue cup"]]).score([["a red cup"], ["a blue cup"]])[0, 0]],
    "BLEU (B@1 to B@4)": lambda: [bleu(1), bleu(2)],
    "WMD, the word mover's distance": None,  # of the words that the fixture holds
    "CLIP text and SBERT": lambda: [A @ B],
    "SPICE and SPICE-like": lambda: [*scene_graphs.spice_like([["a red cup", "a dog"]], [["a red dog"]])[0]],
    "Truth, invented, omitted": facts,
    "CLIP and DINO of images": lambda: [100 * (1 - A @ B)],
    "FID and KID": lambda: [image_sets.fid(np.array([[0.0, 0], [2, 0]]), np.array([[3.0, 0], [9, 0]]))],
    "IS, the Inception Score": lambda: [image_sets.isc(SURE), image_sets.isc(SURE[[0, 0]])],
    "Kendall's τ": lambda: [ranking.kendall_tau(*FIRST)[0]],
    "Gain": lambda: [ranking.gain(*FIRST).percent.value],
    "CLIPScore and likelihood": lambda: [np.mean(np.log([1 / 2, 1 / 8]))],
    "The 95 % interval": lambda: [intervals.smallest_effect(Estimate(1, -1, 3, 30))],
}


def test_every_score_of_the_page_is_computed():
    assert SECTIONS.keys() == COMPUTED.keys()


@pytest.mark.filterwarnings("ignore:FID of 2 images")
@pytest.mark.parametrize("title", COMPUTED)
def test_what_is_worked_by_hand_is_what_the_package_computes(title, vectors):
    example = SECTIONS[title].partition("**By hand.**")[2]
    printed = re.findall(r"\*\*(-?\d[\d.]*)", example)
    compute = COMPUTED[title] or (lambda: word_mover.word_mover([["red cup"]], [["red dog"]], vectors)[0])
    digits = [len(text.partition(".")[2]) for text in printed]
    assert printed == [f"{value:.{n}f}" for value, n in zip(compute(), digits, strict=True)]

"""Exhibits to play with: what their scripts are given is what the package computes, and no text ends an element."""

import base64
import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from dfl_utils.exhibits import play
from dfl_utils.scores.ranking import Estimate
from dfl_utils.store import provenance

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 255, (2, 3, 8, 8, 3), dtype=np.uint8)
MOST_BYTES = 15_000  # of a script
WORTH = np.array([[1.0, 3.0, 2.0], [5.0, 5.0, 4.0]])


def given(html) -> dict:
    (found,) = re.findall(r'<script type="application/json">(.*?)</script>', html.data, re.DOTALL)
    return json.loads(found)


def test_a_game_of_captions_holds_each_caption_with_its_score_and_the_judges_places():
    texts = [["a </script> dog", "b", "c"], ["d", "e", "f"]]
    html = play.captions(PICTURES[:, 0], texts, PICTURES, ("CIDEr", WORTH), {"CLIP": -WORTH})
    game = given(html)
    one, two = game["rounds"]
    assert game["higher"] and game["metric"] == "CIDEr"
    assert [each["text"] for each in one["candidates"]] == texts[0]
    assert [each["worth"] for each in two["candidates"]] == [5.0, 5.0, 4.0]
    assert one["judges"] == {"CLIP": [0, 2, 1]} and two["judges"] == {"CLIP": [1, 2, 0]}
    assert html.data.count("</script>") == 2  # the data's and the script's


def test_a_game_of_drawings_is_won_by_the_smallest_distance():
    html = play.drawings(["a", "b"], PICTURES[:, 0], PICTURES, [list("abc")] * 2, ("CLIP", WORTH), {"reading": WORTH})
    game = given(html)
    assert not game["higher"] and game["metric"] == "CLIP distance"
    assert game["rounds"][0]["given"] == {"text": "a"} and "image" in game["rounds"][0]["then"]


def test_curves_hold_ranks_and_rounded_scores_and_their_still_the_gains():
    html = play.curves({"CLIP": WORTH}, {"CIDEr": WORTH, "WMD": np.where(WORTH == 4, np.nan, WORTH)})
    data = given(html)
    assert data["judges"]["CLIP"] == [[2, 0, 1], [0, 1, 2]]
    assert data["measures"]["WMD"] == {"values": [[1.0, 3.0, 2.0], [5.0, 5.0, None]], "higher": False, "digits": 3}
    assert "+20.0" in html.data  # best 3 and 5, random 2 and 14/3: 8 against 20/3


def test_the_front_is_of_judges_that_none_beats_at_less_cost():
    worth = {name: Estimate(value, value - 1, value + 1, 9) for name, value in {"a": 5.0, "b": 4.0, "c": 7.0}.items()}
    html = play.front({"a": 0.1, "b": 1.0, "c": 10.0}, worth, "seconds", "gain")
    points = re.findall(r'aria-label="(\w): ([^"]*)" class="(\w+)"', html.data)
    assert [(name, kind) for name, _, kind in points] == [("a", "lead"), ("b", "behind"), ("c", "lead")]
    assert points[0][1] == "0.1 seconds, gain +5.0 (+4.0 to +6.0), on the front"


@pytest.fixture(scope="module")
def clip():
    return AutoTokenizer.from_pretrained(provenance.ROOT / "data" / "mini" / "stable-diffusion" / "tokenizer")


def test_the_tokenizers_travel_whole(clip):
    html = play.tokenizers(["a", "##b"], clip, [320, -1], ["rule", "piece"], "still")  # a is number 320
    packed = json.loads(gzip.decompress(base64.b64decode(given(html)["packed"])))
    assert (packed["words"], packed["index"], packed["how"]) == (["a", "##b"], [None, -1], [0, 1])
    made = [pair.replace(" ", "", 1) for pair in packed["merges"]]
    names = clip.convert_ids_to_tokens(range(512, len(clip)))
    assert [*made, "<|startoftext|>", "<|endoftext|>"] == names


@pytest.mark.parametrize("script", sorted(play.SCRIPTS.glob("*.js")), ids=lambda path: path.stem)
def test_a_script_is_small_and_asks_nothing_of_a_network(script: Path):
    text = script.read_text(encoding="utf-8")
    assert len(text.encode()) <= MOST_BYTES and "</script" not in text
    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)|\bfetch\(|XMLHttp|import\(", text) == []

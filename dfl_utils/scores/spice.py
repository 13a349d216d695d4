"""SPICE (Anderson et al., 2016) by pycocoevalcap's jar, where the CoreNLP that it needs has been brought.

The wheel holds SPICE without its two CoreNLP jars (half a gigabyte). Where they are missing, `scene_graphs.spice_like`
is what can be computed, and it is never called SPICE.
"""

import json
import os
import tempfile
from pathlib import Path

import numpy as np
from pycocoevalcap.spice import spice as coco

from dfl_utils.scores.ngrams import java
from dfl_utils.scores.quality import Texts

JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
LIBRARY = Path(coco.__file__).with_name("lib")
# SPICE sets its report in lines by a script, and Java has had no engine for one since 15: without this SPICE parses all
# and then fails. The jar holds an engine of ours that leaves the text as it is, and its source (`javac --release 8`).
REPORT = Path(__file__).with_name("spice_report.jar")
MAIN = "edu.anu.spice.SpiceScorer"
# SPICE's cache looks into classes that Java has closed since.
OPENED = ("java.lang", "java.math", "java.net", "java.nio", "java.text", "java.util", "java.util.concurrent")


def require() -> None:
    """FileNotFoundError where a CoreNLP jar is missing."""
    missing = [name for name in JARS if not (LIBRARY / name).is_file()]
    if missing:
        raise FileNotFoundError(f"SPICE needs {' and '.join(missing)} in {LIBRARY}: bring them by `dfl fetch --profile "
                                "paper --only corenlp`, or take the metric SPICE-like.")  # fmt: skip


def spice(captions: Texts, references: Texts) -> np.ndarray:
    """SPICE's F1 of every candidate against the merged scene graph of its references, (images, N) in [0, 100].

    An empty caption scores 0; NaN where SPICE finds no F1. OSError where Java, or the jar, does not run.
    """
    rows = [(caption, list(texts)) for row, texts in zip(captions, references, strict=True) for caption in row]
    asked = [{"image_id": k, "test": row[0], "refs": row[1]} for k, row in enumerate(rows) if row[0].strip()]
    values = np.zeros(len(rows))
    for item in _run(asked) if asked else []:
        f1 = item["scores"]["All"]["f"]  # a number, null or the text 'NaN'
        values[item["image_id"]] = np.nan if f1 is None else float(f1)
    return 100.0 * values.reshape(len(captions), -1)


def _run(items: list[dict]) -> list[dict]:
    """One run of the jar; a cache for its length alone, so that a reference of many candidates is parsed once."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "cache").mkdir()
        (folder / "in.json").write_text(json.dumps(items), encoding="utf-8")
        opened = [f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in OPENED]
        places = (folder / "in.json", "-cache", folder / "cache", "-out", folder / "out.json")
        jars = os.pathsep.join(map(str, (LIBRARY.with_name(coco.SPICE_JAR), REPORT)))
        done = java("-Xmx8G", *opened, "-cp", jars, MAIN, *places, "-subset", "-silent", cwd=LIBRARY.parent)
        if done.returncode or not (folder / "out.json").is_file():
            said = (done.stderr or done.stdout).decode("utf-8", "replace").strip()[-300:]
            raise OSError(f"SPICE ended with exit status {done.returncode}: {said} Take the metric SPICE-like.")
        return json.loads((folder / "out.json").read_text(encoding="utf-8"))

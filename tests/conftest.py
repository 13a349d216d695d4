"""A small repository of its own, for the tests of the machinery; the embedded pair, for those of the finetuning."""

import json
import os
from pathlib import Path

import pytest

# Before torch is loaded, here and in every process that a test starts: what is compared bit for bit is the work of one
# number of threads, and two ranks on two cores would fight for them.
os.environ["OMP_NUM_THREADS"] = "1"
# What a test asks for it makes; the published run has tests of its own.
os.environ["DFL_PUBLISHED"] = ""

from dfl_utils.store import provenance  # noqa: E402
from dfl_utils.world import data, profile  # noqa: E402

FILES = {
    "dfl_utils/__init__.py": "",
    "dfl_utils/loops.py": '"Loops."\nfrom dfl_utils import scores\n\n\ndef double(x):\n    return 2 * scores.same(x)\n',
    "dfl_utils/scores.py": "def same(x):\n    return x  # as it is\n",
    "dfl_utils/plots.py": "COLOUR = 'blue'\n",
    "_toc.yml": "format: jb-book\nroot: index\nparts:\n  - chapters:\n      - file: one\n",
    "book/index.md": "# Index\n",
    "params/ci.yml": "common: {PROFILE: mini}\none: {NUM_IMAGES: 2}\n",
    "params/quick.yml": "",
    "params/paper.yml": "",
}
PARAMETERS = 'NUM_IMAGES = 3  # images; paper: 4500\nTOP_P = 0.9  # nucleus\nPROFILE = "mini"'
WORK = "from dfl_utils import loops, plots\n\nprint(loops.double(NUM_IMAGES), plots.COLOUR)"
SAVE = """import os
import sys
from pathlib import Path

print("noise", file=sys.stderr)
Path(os.environ["DFL_RESULTS"]).mkdir(parents=True, exist_ok=True)
for name, text in (("one.csv", ""), ("one.json", "{}")):
    Path(os.environ["DFL_RESULTS"], name).write_text(text)"""


def cell(source: str, kind: str = "code", **metadata: object) -> dict:
    extra = {"outputs": [], "execution_count": None} if kind == "code" else {}
    return {"cell_type": kind, "id": str(abs(hash(source)))[:8], "metadata": metadata, "source": source, **extra}


class House:
    """The small repository: `write` a file, write a chapter of `cells`."""

    def __init__(self, root: Path):
        self.root = root
        for name, text in FILES.items():
            self.write(name, text)
        self.chapter(cell("# One", "markdown"), cell(PARAMETERS, tags=["parameters"]), cell(WORK), cell(SAVE))

    def write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def chapter(self, *cells: dict, name: str = "one", **metadata: object) -> Path:
        notebook = {"cells": list(cells), "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
        return self.write(f"book/{name}.ipynb", json.dumps(notebook))


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.setattr(provenance, "used", {})
    # The kernel of a chapter imports the small package before the installed one; a forked one has imported that.
    monkeypatch.setenv("DFL_FORK", "0")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return House(tmp_path)


@pytest.fixture(scope="module")
def mini() -> profile.Profile:
    models = profile.load("mini").pair(captioner="blip-base")
    data.ensure(models)
    return models

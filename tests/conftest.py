"""A small repository of its own, for the tests of the machinery; a quiet process, for what forks or imports anew."""

import ctypes
import json
import multiprocessing
import os
import shutil
import sys
import traceback
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


def plain_map(captioner, pipeline):
    """The vocabulary map by rule alone: the list of words that meanings are looked up in is large."""
    from dfl_utils.training.vocabulary import VocabularyMap

    own, size = (captioner.processor.tokenizer, pipeline.tokenizer), captioner.model.config.text_config.vocab_size
    return VocabularyMap.make(*own, vocab_size=size, by_meaning=False)


@pytest.fixture
def copy(tmp_path: Path):
    """A copy of a shipped model that a test may damage, by its name: `copy("dino")`."""
    return lambda name: shutil.copytree(profile.MINI / name, tmp_path / name)


@pytest.fixture(scope="module")
def mini() -> profile.Profile:
    models = profile.load("mini").pair(captioner="blip-base")
    data.ensure(models)
    return models


LONGEST = ["ray", "quality", "faults", "step_cost", "processes", "generator", "losses", "book", "loops", "verify"]


# --- a process in which nothing has run yet -----------------------------------------------------------------
NEW_USER = 0x10000000  # of Linux's sched.h


class Quiet:
    """A process of one thread, forked when all is imported and before a test runs: its own forks are whole, and free.

    Each module that asks has a fork of it, which answers until the module ends.
    """

    def __init__(self):
        self.ours, theirs = multiprocessing.Pipe()
        if (pid := os.fork()) == 0:
            self.ours.close()
            if os.fork():  # no child of the tests, for a build that is stopped kills its children
                os._exit(0)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # pytest catches nothing of it
            self._serve(theirs)
        os.waitpid(pid, 0)
        theirs.close()

    def ask(self, function, *arguments):
        """What a module's function answers there."""
        self.ours.send((function, arguments))
        answer, error = self.ours.recv()
        assert error is None, error
        return answer

    def _serve(self, connection) -> None:
        status = 0
        while status == 0:
            if (pid := os.fork()) == 0:
                os._exit(self._answer(connection))
            status = os.waitpid(pid, 0)[1]
        os._exit(0)

    def _answer(self, connection) -> int:
        try:
            while (order := connection.recv()) is not None:
                function, arguments = order
                try:
                    connection.send((function(*arguments), None))
                except BaseException:
                    connection.send((None, traceback.format_exc()))
        except EOFError:  # the tests have ended
            return 1
        return 0


def unshare(what: int) -> None:
    """Give this process namespaces of its own; OSError or AttributeError where the system forbids it or knows none."""
    user, group, libc = os.getuid(), os.getgid(), ctypes.CDLL(None, use_errno=True)
    if libc.unshare(NEW_USER | what) != 0:
        raise OSError(ctypes.get_errno(), "unshare is forbidden")
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        Path("/proc/self", name).write_text(text)


def forget() -> None:
    """Let this process import the package and its tests as if for the first time."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "dfl_utils" or name.startswith("test_")]:
        del sys.modules[name]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest modules first, so that the workers end together."""
    first = {f"test_{name}": place - len(LONGEST) for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: first.get(item.path.stem, 0))


def pytest_collection_finish(session: pytest.Session) -> None:
    if any("quiet" in getattr(item, "fixturenames", ()) for item in session.items):
        session.config.quiet = Quiet()


@pytest.fixture(scope="module")
def quiet(request: pytest.FixtureRequest):
    """Ask the quiet process: `quiet(function, *arguments)`."""
    yield request.config.quiet.ask
    request.config.quiet.ours.send(None)

"""No archive leaves its folder, no socket is opened, no page tells of the machine; of pickles ruff tells."""

import contextlib
import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest
from conftest import House, cell, unshare
from PIL import Image, PngImagePlugin

from dfl_utils.build import disclosure, execution, fetch
from dfl_utils.build.chapter import BuildFailed
from dfl_utils.store import provenance

ROOT = Path(__file__).parents[1]
NEW_NETWORK = 0x40000000  # of Linux's sched.h


# --- archives ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["in/../../out.txt", "in//../../../out.txt", "in/link"])
def test_no_archive_writes_out_of_its_folder_or_brings_a_link(tmp_path, name):
    member = zipfile.ZipInfo(name)
    member.external_attr = ((stat.S_IFLNK if name == "in/link" else stat.S_IFREG) | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(member, "/etc")
    fetch.unpack(tmp_path / "a.zip", tmp_path / "place", ["in/"])
    (found,) = [path for path in tmp_path.rglob("*") if not path.is_dir() and path.name != "a.zip"]
    assert found.is_relative_to(tmp_path / "place/in") and not found.is_symlink() and found.read_text() == "/etc"


def test_no_library_reports_its_use():
    """Set before any library is loaded, for this process and those that it starts."""
    asked = "import dfl_utils, os, sys; print('torch' in sys.modules, *map(os.environ.get, sys.argv[1:]))"
    names = ["HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY", "DO_NOT_TRACK", "RAY_USAGE_STATS_ENABLED"]
    bare = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-c", asked, *names], env=bare, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "1", "1", "1", "0"]


# --- without a network --------------------------------------------------------------------------------------
# Put into every process of a run: no socket of the internet's families may connect, and no name be looked up.
GUARD = """
import os, socket, sys

def guard(event, arguments):
    reaches = event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr") or (
        event in ("socket.connect", "socket.sendto")  # urllib3 binds one to ::1 on import, to see whether it could
        and getattr(arguments[0], "family", None) in (socket.AF_INET, socket.AF_INET6)
    )
    if reaches:
        with open(os.environ["DFL_GUARD"], "a") as log:
            log.write(f"{event} {arguments}\\n")

sys.addaudithook(guard)
"""
LOOP = """from dfl_utils.world import data, profile
from dfl_utils.game.loops import Game
from dfl_utils.store.store import RunStore

models = profile.load("mini", num_inference_steps=1, max_words=8)
data.ensure(models)
examples = data.subset(data.load(models, "nocaps", "overall"), 2, seed=0)
game = Game(models, RunStore(), progress=False)
run = game.i2t2i(examples, 2)
read = game.t2i2t(examples, 1)
print(run.sim_image["clip"].shape, len(read.captions_hat), run.drawings.features().shape[:2])
"""


def run_offline(root):
    """A chapter of both loops, executed where there is no network: in a namespace without one, if the system can."""
    with contextlib.suppress(OSError, AttributeError):
        unshare(NEW_NETWORK)
    variables = {"DFL_GUARD": str(root / "connections"), "DFL_STORE": str(root / "store"), "DFL_FORK": "0"}
    os.environ.update(variables, PYTHONPATH=f"{root / 'guard'}{os.pathsep}{ROOT}")
    exec(GUARD, {})
    provenance.ROOT = root
    execution.run_chapter("one", target=root / "run" / "one.ipynb", results=root / "run")


def test_a_chapter_of_both_loops_runs_without_a_network_and_tells_nothing_of_the_machine(quiet, tmp_path):
    house = House(tmp_path)
    house.write("guard/sitecustomize.py", GUARD)
    house.chapter(cell("SEED = 0", tags=["parameters"]), cell(LOOP))
    quiet(run_offline, tmp_path)
    assert not (tmp_path / "connections").exists(), (tmp_path / "connections").read_text()
    copy = tmp_path / "run" / "one.ipynb"
    disclosure.refuse(copy.parent, sorted(copy.parent.iterdir()))
    assert nbformat.read(copy, as_version=4).cells[-1].outputs[0].text == "(2, 2) 2 (2, 2)\n"


# --- what pages tell ----------------------------------------------------------------------------------------
KNOWN = ["/home/anne", "/data/of/anne"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("saved in /home/anne/book", "/home/anne"),
        ("kept in /data/of/anne", "/data/of/anne"),
        ("saved in '/home/bob/x y'", "/home/bob"),
        (r"C:\\Users\\bob\\x", r"C:\\Users\\bob"),
    ],
)
def test_a_leak_is_found(text, shown):
    assert shown in disclosure.leaks(text, KNOWN)


def test_ordinary_text_is_no_leak():
    text = """results/mini and .venv/lib/python3.11/site-packages/x, ../tmp/x
        https://a.org/home/x and https://a.org/tmp/x, $HOME/x, ~/tmp/x, /tmp and /home"""
    assert list(disclosure.leaks(text, KNOWN)) == []


def test_folders_are_this_machines_and_those_that_variables_name(house, monkeypatch):
    monkeypatch.setenv("DFL_STORE", "/data/of/anne")
    assert {str(house.root), "/data/of/anne"} <= set(disclosure.folders())


@pytest.mark.parametrize("shown", ["of-a-secret-service", f"hf_{'a' * 34}", f"ghp_{'b' * 36}"])
def test_a_secret_is_not_shown_nor_said(house, monkeypatch, shown):
    monkeypatch.setenv("MY_API_KEY", "of-a-secret-service")
    page = house.write("a.html", f"<p>{shown}</p>")
    with pytest.raises(BuildFailed, match="a.html shows a secret or an access token: print nothing of it") as error:
        disclosure.refuse(house.root, [page])
    assert shown not in str(error.value)


OUTPUT = nbformat.v4.new_output


@pytest.mark.parametrize(
    ("outputs", "metadata"),
    [
        ([OUTPUT("stream", name="stdout", text="saved\n/home/bob/x\n")], {}),
        ([OUTPUT("execute_result", {"text/html": ["<b>", "/home/bob</b>"]})], {}),
        ([OUTPUT("error", ename="E", evalue="", traceback=["File\n/home/bob/x.py"])], {}),
        ([], {"papermill": {"output_path": "/home/bob/out.ipynb"}}),
    ],
)
def test_a_leak_in_an_executed_copy_is_named(house, outputs, metadata):
    copy = house.write("one.ipynb", "")
    cells = [nbformat.v4.new_code_cell("x", outputs=outputs)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), copy)
    with pytest.raises(BuildFailed) as error:
        disclosure.refuse(house.root, [copy])
    told = "one.ipynb shows the path '/home/bob': print something else there, and run it again."
    assert str(error.value) == told


def test_a_leak_in_a_picture_is_named(house):
    chunk = PngImagePlugin.PngInfo()  # as a plotting library may write
    chunk.add_text("Source", "/home/bob/plot.py")
    Image.new("RGB", (4, 4)).save(house.root / "a.png", pnginfo=chunk)
    with pytest.raises(BuildFailed, match="^a.png shows the path"):
        disclosure.refuse(house.root, [house.root / "a.png"])


def test_the_published_numbers_tell_nothing():
    results = ROOT / "results"
    disclosure.refuse(results, sorted(path for path in results.glob("*/*") if path.is_file()))

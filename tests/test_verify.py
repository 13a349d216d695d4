"""`dfl verify`: what is published is found to be so, and a wrong row, a wrong shard or another key is found out."""

import hashlib
import json
import shutil
import subprocess
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
from conftest import House, cell

from dfl_utils.build import cli, execution, golden, publish, verify
from dfl_utils.build.chapter import BuildFailed
from dfl_utils.exhibits import tidy
from dfl_utils.store import provenance, published_run, shards
from dfl_utils.store.published_run import PublishedRun
from dfl_utils.store.store import KINDS

WORK = """import numpy as np
import pandas as pd
from dfl_utils.exhibits import tidy
from dfl_utils.store.store import Kind, RunStore

DRAWN, SEEN = Kind("test-drawings", travels=False), Kind("test-looks", version=VERSION)
store = RunStore()


def draw(k):
    return {"x": np.random.default_rng([SEED, k]).normal(size=50)}, 50


def look(k):
    x = store.get(DRAWN, {"image": k}, lambda: draw(k))["x"]
    return {"mean": np.array([x.mean()]), "words": [f"about {x.mean():.1f}"]}, 1


seen = [store.get(SEEN, {"drawings": DRAWN.key(image=k)}, lambda k=k: look(k)) for k in range(NUM_IMAGES)]
means = np.array([one["mean"][0] for one in seen])
row = ["table1", "nocaps", "overall", "", np.nan, "CIDEr", 0.0, np.nan, np.nan, NUM_IMAGES, np.nan]
frame = pd.DataFrame([row] * 2, columns=tidy.COLUMNS).assign(
    method=["mean", "spread"], value=[means.mean(), means.std()]
)
tidy.save("one", frame, {"seconds": 1.0, "model_calls": 51 * NUM_IMAGES})"""


BY_KERNEL = execution._execute


def in_this_process(source, values, results):
    """Execute cells without a kernel, whose start takes longer than all that they do."""
    results.mkdir(parents=True, exist_ok=True)
    variables = {"DFL_RESULTS": str(results), "DFL_LEDGER": str(results / f"{source.stem}.shards")}
    notebook, kinds, names = nbformat.read(source, as_version=4), dict(KINDS), {}
    parameters, work = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    try:
        with execution.environment(**variables):
            exec(parameters, names)
            names.update(values)
            exec(work, names)
    except ValueError as error:
        raise BuildFailed(str(error)) from error
    finally:  # they declare kinds, which a kernel takes with it
        KINDS.clear()
        KINDS.update(kinds)
    return notebook


def chapter(house, parameters="NUM_IMAGES = 4\nSEED = 0\nVERSION = 1"):
    house.chapter(cell("# One", "markdown"), cell(parameters, tags=["parameters"]), cell(WORK))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A small repository with one published chapter."""
    root = tmp_path_factory.mktemp("house")
    house = House(root)
    with pytest.MonkeyPatch.context() as patch:
        _enter(patch, root)
        patch.setenv("DFL_STORE", str(root / ".store"))
        chapter(house)
        house.write(".gitignore", "/_build/\n/.store/\n")
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.example"]
        for words in (["init", "--quiet"], ["add", "--all"], [*identity, "commit", "--quiet", "--message", "One"]):
            subprocess.run(["git", *words], cwd=root, check=True)
        results = execution.folder("results") / "full"
        execution.run_chapter("one", scale="full", results=results)
        publish.publish("mini", results, root / ".store")
    return root


def _enter(patch, root):
    patch.setattr(provenance, "ROOT", root)
    patch.setattr(provenance, "used", {})
    patch.setenv("DFL_FORK", "0")
    patch.setattr(execution, "_execute", in_this_process)


@pytest.fixture
def house(published, tmp_path, monkeypatch):
    shutil.copytree(published, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / ".store")
    _enter(monkeypatch, tmp_path)
    return tmp_path


def change_table(house, change):
    """Another published table, stamped as if it had been made so."""
    table, stamp = house / "results" / "mini" / "exhibits.csv", house / "results" / "mini" / "stamp.json"
    tidy.write(change(tidy.read(table)), table)
    digest = hashlib.sha256(table.read_bytes()).hexdigest()
    stamp.write_text(json.dumps(json.loads(stamp.read_text()) | {"exhibits": digest}))


def changed_shard(run, stem, change, name=None, **metadata):
    """A published shard with another content, or another one like it."""
    content, own = run.read(stem)
    alone = run.folder / "alone.safetensors"
    shards.write(alone, change(content), own | metadata)
    found = published_run.unpack(run.file(stem)) | {name or stem: alone.read_bytes()}
    alone.unlink()
    published_run.pack(run.file(stem), found)


def test_published_numbers_are_found_again(house, capsys, monkeypatch):
    """By a kernel, as all who call `dfl verify` have it."""
    monkeypatch.setattr(execution, "_execute", BY_KERNEL)
    assert cli.main(["verify", "table1", "--seed", "1"]) == 0
    said = capsys.readouterr().out
    assert "one: 4 of 4 shards made anew" in said and "seed 1" in said
    assert "2 numbers of 2 rows, 0 apart; 4 shards, 0 apart" in said
    assert said.count(" yes") == 6 and "published" in said and "recomputed" in said
    assert not (house / ".store").exists()


def test_a_wrong_row_and_one_that_a_side_lacks_are_found_out(house, capsys):
    def planted(frame):
        frame.loc[frame.method == "spread", "value"] *= 1.01
        return frame.assign(method=frame.method.replace("mean", "a miracle"))

    change_table(house, planted)
    assert cli.main(["verify", "one"]) == 1
    said = capsys.readouterr().out
    assert "3 apart; 4 shards, 0 apart" in said and "a miracle" in said and "spread" in said


def test_a_table_that_was_not_stamped_is_refused(house, capsys):
    table = house / "results" / "mini" / "exhibits.csv"
    for text in (table.read_text() + "<<<<<<<\n", None):
        table.unlink() if text is None else table.write_text(text)
        assert cli.main(["verify", "one"]) == 2
        said = capsys.readouterr().err
        assert "exhibits.csv is not the table that was stamped: `git checkout -- results/mini`" in said


@pytest.mark.parametrize("harm", ["cut", "lacking"])
def test_a_published_file_that_is_not_whole_is_named_before_anything_runs(house, capsys, harm):
    run = PublishedRun(published_run.place())
    file = run.file(run.chapters["one"][0])
    if harm == "cut":
        file.write_bytes(file.read_bytes()[:50])
    else:
        published_run.pack(file, dict(list(published_run.unpack(file).items())[:2]))
    assert cli.main(["verify", "one"]) == 2
    said = capsys.readouterr().err
    assert str(file) in said and "git checkout -- results/mini/store" in said


def test_a_wrong_shard_is_found_out(house, capsys):
    run = PublishedRun(published_run.place())
    changes = (
        lambda content: content | {"mean": content["mean"] + 0.02},
        lambda content: content | {"words": ["something else"]},
        lambda content: {"mean": content["mean"]},
    )
    for stem, change in zip(run.chapters["one"], changes, strict=False):
        changed_shard(run, stem, change)
    assert cli.main(["verify", "one"]) == 1
    assert "4 shards, 3 apart" in capsys.readouterr().out


def test_a_row_of_no_shard_that_is_drawn_is_computed_from_the_published_ones(house, capsys, monkeypatch):
    monkeypatch.setattr(verify, "costs", lambda run, stem: {stem: 1e9})
    assert cli.main(["verify", "one"]) == 0
    said = capsys.readouterr().out
    assert "0 of 4 shards made anew" in said and "2 numbers of 2 rows, 0 apart; 0 shards, 0 apart" in said


def test_a_raised_version_is_said_and_nothing_is_computed(house, capsys):
    small = House(house)
    chapter(small, "NUM_IMAGES = 4\nSEED = 0\nVERSION = 2")
    stamp = house / "results" / "mini" / "stamp.json"
    made = json.loads(stamp.read_text())
    made["chapters"]["one"]["parameters"]["VERSION"] = 2
    stamp.write_text(json.dumps(made))
    assert cli.main(["verify", "one"]) == 1
    assert "is not in the published run: a version, a model" in capsys.readouterr().err


def test_bad_input_ends_in_one_sentence(house, capsys):
    assert cli.main(["verify", "table9"]) == 2
    assert "There is no chapter or exhibit table9: choose one of one, table1" in capsys.readouterr().err
    assert cli.main(["verify", "one", "--minutes", "nan"]) == 2
    assert "give a row, some time" in capsys.readouterr().err


def test_without_the_run_it_says_what_is_missing(house, capsys):
    stamp = house / "results" / "mini" / "stamp.json"
    whole = stamp.read_text()
    stamp.write_text(json.dumps(json.loads(whole) | {"checkpoints": {"data/mini/models/gone": {}}}))
    assert cli.main(["verify", "one"]) == 2
    assert "data/mini/models/gone is not there, and recomputing needs it" in capsys.readouterr().err
    stamp.write_text(whole)
    shutil.rmtree(published_run.place())
    assert cli.main(["verify", "one"]) == 2
    assert "git checkout -- results/mini/store" in capsys.readouterr().err
    stamp.unlink()
    assert cli.main(["verify", "one"]) == 2
    assert "git checkout -- results/mini" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "old", "new", "agrees"),
    [
        ("labels", [1.0, np.nan], [1.0, np.nan], True),
        ("labels", [1.0, np.nan], [np.nan, 1.0], False),
        ("labels", [np.inf, 1.0], [5.0, 900.0], False),
        ("labels", [100.0], [100.2], True),
        ("labels", [0.1], [0.102], False),
        ("quality-cider", [100.0, 1.0], [100.0, 1.001], False),
    ],
)
def test_numbers_are_alike_within_what_machines_differ_by(kind, old, new, agrees):
    assert golden.alike({"x": np.array(old)}, {"x": np.array(new)}, kind)[1] == agrees


@pytest.mark.parametrize(
    ("old", "new", "agrees"),
    [
        ({"x": np.zeros(2, np.uint8)}, {"x": np.zeros(2)}, False),
        ({"x": np.zeros(1000, np.uint8)}, {"x": np.eye(1, 1000, dtype=np.uint8)[0]}, True),
        ({"x": np.zeros(10, np.uint8)}, {"x": np.eye(1, 10, dtype=np.uint8)[0]}, False),
        ({"x": ["a", "b"]}, {"x": ["a", "c"]}, False),
        ({"x": [], "digests": ["a"]}, {"x": [], "digests": ["b"]}, True),
    ],
)
def test_contents_are_alike_within_what_machines_differ_by(old, new, agrees):
    assert golden.alike(old, new, "images")[1] == agrees


def test_what_painters_were_asked_is_not_made_anew():
    keys = {
        "skill-1": '{"generator": {"checkpoint": "unet-weights-0 to 1"}}',
        "unet-digest-2": '{"made from": {"unet-weights": 1}}',
        "skill-3": '{"generator": {"checkpoint": "2"}}',
    }
    run = SimpleNamespace(
        chapters={"painter": list(keys)}, metadata=lambda stem: {"key": keys[stem]}, cost=lambda stem: (1.0, 1)
    )
    chosen = verify._choose(run, "painter", {"machine": provenance.machine()}, np.random.default_rng(0), 60.0)
    assert chosen == ["skill-3"]

"""The published run: read beside the run store, never written, and nothing in it taken for whole that is not."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from dfl_utils.build import book, publish
from dfl_utils.store import provenance, published_run, shards
from dfl_utils.store.published_run import INDEX, PublishedRun
from dfl_utils.store.store import Kind, RunStore, ledger

SEEN = Kind("test-seen")
DRAWN = Kind("test-drawn", travels=False)
KEY = {"image": 1}


def never():
    raise AssertionError("the shard was there")


def content(value=1.0):
    return {"x": np.array([value])}


@pytest.fixture
def filled(tmp_path, monkeypatch):
    """A run store where a chapter asked for one shard that was made from another, and its ledger."""
    monkeypatch.setenv("DFL_LEDGER", str(tmp_path / "one.shards"))
    store = RunStore(tmp_path / "store")

    def look():
        store.get(DRAWN, KEY, lambda: (content(2.0), 5))
        return content(), 3

    store.get(SEEN, KEY, look)
    store.count(DRAWN, KEY)
    monkeypatch.delenv("DFL_LEDGER")
    return store, ledger(tmp_path / "one.shards")


@pytest.fixture
def run(filled, tmp_path):
    store, lines = filled
    asked = [stem for how, stem in lines if how == "made"]
    behind = [stem for how, stem in lines if how != "made"]
    published_run.write(tmp_path / "published", store.root, {"one": asked}, behind)
    return PublishedRun(tmp_path / "published")


def test_what_was_asked_for_travels_and_the_rest_leaves_its_cost(filled, run):
    assert filled[1] == [("inner", DRAWN.stem(KEY)), ("made", SEEN.stem(KEY)), ("counted", DRAWN.stem(KEY))]
    assert run.stems == {SEEN.stem(KEY)}
    assert run.chapters == {"one": [SEEN.stem(KEY)]}
    assert run.cost(DRAWN.stem(KEY))[1] == 5 and run.cost(SEEN.stem(KEY))[1] == 3
    assert run.cost("test-seen-" + 64 * "0") is None
    assert {path.suffix for path in run.folder.iterdir()} == {".safetensors", ".json"}


def test_a_published_shard_is_found_and_nothing_is_written(run, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in run.folder.iterdir()}
    store = RunStore(tmp_path / "new", run)
    assert store.get(SEEN, KEY, never)["x"] == 1.0
    store.count(DRAWN, KEY)
    assert store.spent["test-drawn"].calls == 5 and store.spent["test-seen"].made == 0
    assert not list((tmp_path / "new").iterdir())
    assert {path: path.stat().st_mtime_ns for path in run.folder.iterdir()} == before


def test_a_changed_key_is_not_found_and_the_work_is_done(run, tmp_path):
    store = RunStore(tmp_path / "new", run)
    assert store.get(SEEN, {"image": 2}, lambda: content(9.0))["x"] == 9.0
    try:
        object.__setattr__(SEEN, "version", 2)
        assert store.get(SEEN, KEY, lambda: content(8.0))["x"] == 8.0
    finally:
        object.__setattr__(SEEN, "version", 1)
    assert store.spent["test-seen"].made == 2


def damaged(path):
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")


def one_is_damaged(path):
    found = published_run.unpack(path)
    published_run.pack(path, {stem: data[:-4] + b"\0\0\0\1" for stem, data in found.items()})


def renamed(path):
    other, elsewhere = Kind("test-other"), path.with_name("other.safetensors")
    shards.write(elsewhere, content(7.0), {"key": json.dumps(other.key(image=1)), "seconds": "0", "calls": "0"})
    published_run.pack(path, {SEEN.stem(KEY): elsewhere.read_bytes()})
    elsewhere.unlink()


@pytest.mark.parametrize("harm", [damaged, one_is_damaged, renamed])
def test_a_harmed_shard_is_named_and_made_anew(run, tmp_path, caplog, harm):
    path = run.file(SEEN.stem(KEY))
    harm(path)
    harmed, store = path.read_bytes(), RunStore(tmp_path / "new", run)
    with caplog.at_level(logging.WARNING):
        assert store.get(SEEN, KEY, lambda: content(9.0))["x"] == 9.0
    (said,) = [record.getMessage() for record in caplog.records]
    assert str(path) in said and "done anew" in said and "git checkout -- results/mini/store" in said
    assert path.read_bytes() == harmed and store.spent["test-seen"].made == 1


@pytest.mark.parametrize(
    ("harm", "told"),
    [(Path.unlink, f"lacks {SEEN.stem(KEY)}"), (lambda path: path.write_bytes(path.read_bytes()[:40]), "is not whole")],
)
def test_a_file_that_is_lost_or_cut_short_is_said_once_for_all_its_shards(run, tmp_path, caplog, harm, told):
    path = run.file(SEEN.stem(KEY))
    harm(path)
    store = RunStore(tmp_path / "new", run)
    for image in (1, 2, 9):
        assert store.get(SEEN, {"image": image}, content)["x"] == 1.0
    (said,) = [record.getMessage() for record in caplog.records]
    assert str(path) in said and told in said


def test_of_a_kind_that_stays_the_cost_alone_is_published(tmp_path, monkeypatch):
    monkeypatch.setenv("DFL_LEDGER", str(tmp_path / "one.shards"))
    RunStore(tmp_path).get(DRAWN, KEY, lambda: (content(), 2))
    assert ledger(tmp_path / "one.shards") == [("inner", DRAWN.stem(KEY))]
    published_run.write(tmp_path / "out", tmp_path, {"one": []}, [DRAWN.stem(KEY)])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["index.json"]
    assert PublishedRun(tmp_path / "out").cost(DRAWN.stem(KEY))[1] == 2


def test_a_run_goes_on_from_what_was_published_when_the_run_store_is_lost(run, tmp_path):
    store = RunStore(tmp_path / "new", run)
    store.get(SEEN, {"image": 2}, content)
    asked, lost = [SEEN.stem(KEY), SEEN.stem({"image": 2})], [DRAWN.stem(KEY)]
    with pytest.raises(ValueError, match="has lost a shard"):
        published_run.write(run.folder, store.root, {"one": asked}, lost)
    published_run.write(run.folder, store.root, {"one": asked}, lost, before=run)
    after = PublishedRun(run.folder)
    assert after.stems == set(asked) and after.cost(lost[0])[1] == 5
    assert after.read(asked[0])[0]["x"] == 1.0


def test_a_publication_that_lacks_a_shard_leaves_the_old_run(run, filled):
    store, _ = filled
    store.path(SEEN, KEY).unlink()
    with pytest.raises(ValueError, match=f"has lost a shard .{SEEN.stem(KEY)}"):
        published_run.write(run.folder, store.root, {"one": [SEEN.stem(KEY)]}, [])
    assert PublishedRun(run.folder).stems == {SEEN.stem(KEY)}
    assert {path.name for path in run.folder.parent.glob("published*")} == {"published"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, r"index\.json .* cannot be read .*: all work is done anew; `git checkout -- results/mini/store` brings"),
        ('{"layout": 1, "chapters": 7, "left_out": {}}', r"index\.json of the published run cannot be read"),
        ('{"layout": 0, "chapters": {}, "left_out": {}}', "it is of layout 0, and this code reads layout 1"),
    ],
)
def test_a_run_that_cannot_be_used_is_said_in_one_sentence(run, text, said, monkeypatch, caplog):
    index = run.folder / INDEX
    index.unlink() if text is None else index.write_text(text)
    with pytest.raises(ValueError, match=said):
        PublishedRun(run.folder)
    monkeypatch.setenv("DFL_PUBLISHED", str(run.folder))
    assert published_run.opened() is None
    assert book._stores(True, "published", fresh=False) == {"DFL_PUBLISHED": ""}  # said once for all chapters
    assert len(caplog.records) == 2


def test_an_own_folder_has_no_published_run_beside_it(tmp_path, run, monkeypatch):
    monkeypatch.setenv("DFL_PUBLISHED", str(run.folder))
    assert RunStore(tmp_path / "own").published is None
    monkeypatch.setenv("DFL_STORE", str(tmp_path / "usual"))
    assert RunStore().published.folder == run.folder
    monkeypatch.setenv("DFL_PUBLISHED", "")
    assert RunStore().published is None


def test_the_committed_run_is_whole_and_small_and_tells_of_no_machine():
    run = PublishedRun(published_run.place())
    here = str(provenance.ROOT).encode()
    for path in sorted(run.folder.glob("*.safetensors")):
        for stem, data in published_run.unpack(path).items():
            assert here not in data, stem
            shards.loads(data)
    assert here not in (run.folder / INDEX).read_bytes()
    assert 0 < sum(path.stat().st_size for path in run.folder.iterdir()) <= 40e6
    assert run.stems == {stem for stems in run.chapters.values() for stem in stems}
    assert run.chapters.keys() >= publish.stamp("mini")["chapters"].keys()
    kinds = {published_run.kind_of(stem) for stem in run.stems}
    assert not kinds & {"images", "token-images", "latents", "weights"}  # of drawings what is shown alone

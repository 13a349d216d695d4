"""Exhibit rows, their publication and the test of whether a publication is still the tree's."""

import json

import pandas as pd
import pytest

from dfl_utils import chapter, exhibits, provenance

ROW = dict.fromkeys(exhibits.COLUMNS) | {
    "exhibit": "figure3", "dataset": "nocaps", "split": "overall", "method": "dino", "x": 0, "metric": "CIDEr",
    "value": 0.5, "low": 0.4, "high": 0.625, "n": 300,
}  # fmt: skip


def rows(*changes: dict) -> pd.DataFrame:
    return pd.DataFrame([ROW | change for change in changes], columns=exhibits.COLUMNS)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"exhibit": "figure5"}, "exhibit is one of"),
        ({"dataset": "flickr"}, "dataset is nocaps or coco"),
        ({"split": "all"}, "split is one of"),
        ({"metric": "cider"}, "metric is spelled as in"),
        ({"value": None}, "value is a number"),
        ({"low": None}, "low and high come together"),
        ({"low": 0.6}, "low <= value <= high"),
        ({"high": 0.4}, "low <= value <= high"),
        ({"n": 2.5}, "n is a whole number"),
        ({"n": 0}, "n is a whole number"),
    ],
)
def test_a_row_that_breaks_a_rule_is_named(change, rule):
    with pytest.raises(ValueError, match=rf"breaks the rule that {rule}.*: exhibit="):
        exhibits.validate(rows({"x": 1}, change))


def test_columns_are_fixed_and_rows_unique():
    with pytest.raises(ValueError, match="need the columns exhibit,dataset"):
        exhibits.validate(rows({}).drop(columns="paper"))
    with pytest.raises(ValueError, match="together are unique"):
        exhibits.validate(rows({}, {"value": 0.45}))


def test_free_rows_need_no_data_set():
    frame = exhibits.validate(rows({"exhibit": "cost", "dataset": None, "split": None, "metric": "seconds"}))
    assert frame.dataset.tolist() == [""]


@pytest.fixture
def saved(house, monkeypatch):
    """A chapter that saved two rows at scale full, as the runner leaves it."""
    directory = house.root / "_build/results/full"
    monkeypatch.setenv("DFL_RESULTS", str(directory))
    house.write("data/mini/clip/model.safetensors", "weights")
    house.write("data/paper/table1.csv", "1")
    house.write("dfl_utils/paper.py", "TABLE = 1\n")
    house.write("dfl_utils/scores.py", "from dfl_utils import paper\n\n\ndef same(x):\n    return x\n")
    provenance.checkpoint_hash.cache_clear()
    provenance.register("clip", house.root / "data/mini/clip")
    exhibits.save("one", rows({"x": 10}, {"x": 2, "paper": 0.741}), {"seconds": 12.34, "model_calls": 7})
    source = chapter.find("one")
    parameters = chapter.effective(source, chapter.at_scale(source, "full"))
    run = {"scale": "full", "parameters": parameters, "made_by": exhibits.made_by(source)}
    exhibits.record_run(directory, "one", run)
    return directory


def test_publish_writes_sorted_rows_and_a_stamp(house, saved):
    target = exhibits.publish("mini", saved)
    assert (target / "exhibits.csv").read_text() == (
        "exhibit,dataset,split,method,x,metric,value,low,high,n,paper\n"
        "figure3,nocaps,overall,dino,2,CIDEr,0.5,0.4,0.625,300,0.741\n"
        "figure3,nocaps,overall,dino,10,CIDEr,0.5,0.4,0.625,300,\n"
    )
    stamp = json.loads((target / "stamp.json").read_text())
    record = stamp["chapters"]["one"]
    assert record["run"]["parameters"] == {"NUM_IMAGES": 3, "TOP_P": 0.9, "PROFILE": "mini"}
    assert record["cost"] == {"seconds": 12.3, "model_calls": 7}
    assert record["checkpoints"]["clip"]["path"] == "data/mini/clip"
    assert record["checkpoints"]["clip"]["how"] == "loaded"
    assert {"commit", "dfl_utils", "exhibits"} <= stamp.keys() and {"versions", "machine"} <= record.keys()


def test_a_second_publication_of_the_same_run_changes_nothing(house, saved):
    target = exhibits.publish("mini", saved)
    before = [(target / name).read_bytes() for name in ("exhibits.csv", "stamp.json")]
    exhibits.publish("mini", saved)
    assert [(target / name).read_bytes() for name in ("exhibits.csv", "stamp.json")] == before


@pytest.mark.parametrize(
    ("file", "text", "named"),
    [
        ("dfl_utils/scores.py", "from dfl_utils import paper\n\n\ndef same(x):\n    return -x\n", "dfl_utils.scores"),
        ("data/paper/table1.csv", "2", "data/paper"),
        ("data/mini/clip/model.safetensors", "other weights", "data/mini/clip"),
        ("params/full.yml", "one: {NUM_IMAGES: 4}\n", "its parameters"),
    ],
)
def test_what_a_number_depends_on_makes_it_stale(house, saved, file, text, named):
    exhibits.publish("mini", saved)
    assert exhibits.stale("mini") == []
    house.write(file, text)
    provenance.checkpoint_hash.cache_clear()
    assert exhibits.stale("mini") == [
        f"results/mini: chapter one was made before {named} changed; run `dfl book --scale full`."
    ]


def test_presentation_and_wording_make_nothing_stale(house, saved):
    exhibits.publish("mini", saved)
    house.write("dfl_utils/plots.py", "COLOUR = 'red'\n")
    house.write(
        "dfl_utils/scores.py", 'from dfl_utils import paper\n\n\ndef same(x):\n    """As it is."""\n    return x\n'
    )
    house.write("data/mini/clip/README.md", "a card")
    assert exhibits.stale("mini") == []


def test_a_lost_checkpoint_an_edited_chapter_and_an_edited_table_are_stale(house, saved):
    target = exhibits.publish("mini", saved)
    (house.root / "data/mini/clip/model.safetensors").unlink()
    (house.root / "data/mini/clip").rmdir()
    notebook = house.root / "book/one.ipynb"
    notebook.write_text(notebook.read_text().replace("loops.double(NUM_IMAGES)", "loops.double(0)"))
    (target / "exhibits.csv").write_text((target / "exhibits.csv").read_text().replace("0.5", "0.6"))
    assert exhibits.stale("mini") == [
        "results/mini: chapter one was made before its code, data/mini/clip changed; run `dfl book --scale full`.",
        "results/mini/exhibits.csv is not the file that was stamped; restore it from git.",
    ]


def test_numbers_of_a_hand_run_are_not_published(house, saved):
    record = json.loads((saved / "one.json").read_text())
    del record["run"]
    (saved / "one.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="Chapter one .* was not run by `dfl book`"):
        exhibits.publish("mini", saved)
    with pytest.raises(ValueError, match="No chapter saved numbers"):
        exhibits.publish("mini", house.root / "_build/results/ci")


def test_a_cost_needs_seconds_and_calls(house):
    with pytest.raises(ValueError, match="The cost of chapter one is"):
        exhibits.save("one", rows({}), {"seconds": 1})


def test_interactive_results_lie_apart(house, monkeypatch):
    monkeypatch.delenv("DFL_RESULTS", raising=False)
    assert exhibits.folder() == house.root / "_build/results/interactive"

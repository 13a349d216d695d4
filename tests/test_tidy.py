"""Exhibit rows, their publication, and what is said of a tree that has changed since."""

import base64
import dataclasses
import json
import subprocess

import numpy as np
import pandas as pd
import pytest

from dfl_utils.build import publish
from dfl_utils.exhibits import comparison, narrow, tidy
from dfl_utils.scores.ranking import Estimate, Gain
from dfl_utils.store import provenance
from dfl_utils.training.evaluation import Trials

ROW = dict.fromkeys(tidy.COLUMNS) | {
    "exhibit": "figure3", "dataset": "nocaps", "split": "overall", "method": "dino", "x": 0, "metric": "CIDEr",
    "value": 0.5, "low": 0.4, "high": 0.625, "n": 300,
}  # fmt: skip


def rows(*changes: dict) -> pd.DataFrame:
    return pd.DataFrame([ROW | change for change in changes], columns=tidy.COLUMNS)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"exhibit": "figure5"}, "exhibit is one of"),
        ({"metric": "cider"}, "metric is spelled as in"),
        ({"low": None}, "low and high come together"),
        ({"low": 0.6}, "low <= value <= high"),
        ({"n": 2.5}, "n is a whole number"),
    ],
)
def test_a_row_that_breaks_a_rule_is_named(change, rule):
    with pytest.raises(ValueError, match=rf"breaks the rule that {rule}.*: exhibit="):
        tidy.validate(rows({"x": 1}, change))


def test_columns_are_fixed_and_rows_unique():
    with pytest.raises(ValueError, match="need the columns exhibit,dataset"):
        tidy.validate(rows({}).drop(columns="paper"))
    with pytest.raises(ValueError, match="together are unique"):
        tidy.validate(rows({}, {"value": 0.45}))
    frame = tidy.validate(rows({"exhibit": "cost", "dataset": None, "split": None, "metric": "seconds"}))
    assert frame.dataset.tolist() == [""]  # a free row is of no data set


@pytest.fixture
def saved(house, monkeypatch):
    """A chapter that saved two rows at scale full, as the runner leaves it, in a repository with one commit."""
    directory = house.root / "_build/results/full"
    monkeypatch.setenv("DFL_RESULTS", str(directory))
    house.write("data/mini/clip/model.safetensors", "weights")
    house.write(".gitignore", "/_build/\n/.store/\n")
    git(house, "init", "--quiet")
    commit(house)
    provenance.register("clip", house.root / "data/mini/clip")
    tidy.save("one", rows({"x": 10}, {"x": 2, "paper": 0.741}), {"seconds": 12.34, "model_calls": 7})
    given = {"parameters": {"NUM_IMAGES": 3}}  # as the runner adds them
    (directory / "one.json").write_text(json.dumps(json.loads((directory / "one.json").read_text()) | given))
    return directory


def git(house, *words):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.example"]
    return subprocess.check_output(["git", *identity, *words], cwd=house.root, text=True).strip()


def commit(house):
    git(house, "add", "--all")
    git(house, "commit", "--quiet", "--message", "Change")
    return git(house, "rev-parse", "HEAD")


def test_publish_writes_sorted_rows_and_a_stamp(house, saved):
    target = publish.publish("mini", saved, house.root / ".store")
    before = [(target / name).read_bytes() for name in ("exhibits.csv", "stamp.json")]
    assert before[0].decode() == (
        "exhibit,dataset,split,method,x,metric,value,low,high,n,paper\n"
        "figure3,nocaps,overall,dino,2,CIDEr,0.5,0.4,0.625,300,0.741\n"
        "figure3,nocaps,overall,dino,10,CIDEr,0.5,0.4,0.625,300,\n"
    )
    stamp = json.loads(before[1])
    one = stamp["chapters"]["one"]
    assert one["parameters"] == {"NUM_IMAGES": 3}
    assert (one["seconds"], one["model_calls"], one["exhibits"]) == (12.3, 7, ["figure3"])
    assert stamp["checkpoints"] == {"data/mini/clip": provenance.checkpoint_hash(house.root / "data/mini/clip")}
    assert stamp["commit"] == git(house, "rev-parse", "HEAD")
    assert (target / "store" / "index.json").is_file()
    publish.publish("mini", saved, house.root / ".store")  # a second time changes nothing
    assert [(target / name).read_bytes() for name in ("exhibits.csv", "stamp.json")] == before


def test_a_tree_with_changes_publishes_nothing(house, saved):
    house.write("dfl_utils/scores.py", "def same(x):\n    return -x\n")
    with pytest.raises(ValueError, match=r"published from a commit, and dfl_utils/scores\.py is not committed"):
        publish.publish("mini", saved, house.root / ".store")
    assert not (house.root / "results").exists()


def test_what_has_changed_since_is_listed_by_its_name(house, saved):
    publish.publish("mini", saved, house.root / ".store")
    made = git(house, "rev-parse", "HEAD")[:12]
    commit(house)  # results alone are no change
    assert publish.changed("mini") == []
    house.write("dfl_utils/scores.py", "def same(x):\n    return -x\n")
    house.write("data/mini/clip/model.safetensors", "other weights")
    house.write("README.md", "words")
    assert publish.changed("mini") == [
        f"results/mini: {name} has changed since {made}"
        for name in ("data/mini/clip/model.safetensors", "dfl_utils/scores.py")
    ]


def test_an_edited_table_is_said(house, saved):
    target = publish.publish("mini", saved, house.root / ".store")
    (target / "exhibits.csv").write_text((target / "exhibits.csv").read_text().replace("0.5", "0.6"))
    (said,) = publish.changed("mini")
    assert "results/mini/exhibits.csv is not the table that was stamped: `git checkout" in said


def test_a_clone_without_the_commit_says_so(house, saved):
    target = publish.publish("mini", saved, house.root / ".store")
    stamp = json.loads((target / "stamp.json").read_text())
    (target / "stamp.json").write_text(json.dumps(stamp | {"commit": 40 * "a"}))
    (said,) = publish.changed("mini")
    assert "Commit aaaaaaaaaaaa is not in this clone: `git fetch --unshallow`" in said
    (target / "stamp.json").write_text("{")
    (said,) = publish.changed("mini")  # never red
    assert "stamp.json cannot be read" in said and "`git checkout -- results/mini` brings it back" in said


def test_texts_that_look_like_nothing_stay_texts(house, tmp_path):
    names = ["NA", "None", "null", "nan", "", "a"]
    frame = tidy.validate(rows(*[{"method": name, "paper": None} for name in names]))
    tidy.write(frame, tmp_path / "rows.csv")
    read = tidy.read(tmp_path / "rows.csv")
    assert sorted(read.method) == sorted(names) and read.paper.isna().all() and read.x.eq(0).all()


# --- what a page shows of them ----------------------------------------------------------------------------
E = Estimate(1.25, -0.04, 2.5, 7, excluded=1)


def test_a_gain_is_set_beside_the_papers_and_not_stated_over_a_level_that_may_be_zero():
    low, high = Estimate(4.0, 3.0, 5.0, 9), Estimate(5.0, 4.0, 6.0, 9)
    change = Estimate(25.0, 10.0, 40.0, 9)
    clear, unclear = Gain(high, low, E, change), Gain(high, dataclasses.replace(low, low=-1.0), E, change)
    gains = {("a", "CIDEr"): clear, ("b", "CIDEr"): unclear, ("c", "FID"): clear, ("d", "CIDEr"): clear}
    levels = {"a": (50, 55), "b": (50, 55), "c": (50, 55), "d": (50, np.nan)}
    table = tidy.gain_table(gains, ["pair", "score"], lambda pair, score: levels[pair])
    assert table["ours"].tolist() == ["4.000 to 5.000"] * 4 and table["paper"].tolist() == ["50 to 55"] * 3 + [""]
    assert table["gain, %"].tolist() == [change, "not stated", Estimate(-25.0, -40.0, -10.0, 9), change]
    assert table["same direction?"].tolist() == ["yes", "", "yes", ""]  # ours and the paper's FID grew
    assert table["visible at our n?"].tolist() == ["no", "", "no", ""]


class Scored(Trials):
    """Trials of which only the scores are there: method -> `(trainings, images)`, whatever the metric."""

    def __init__(self, scores):
        self.scores = scores

    def values(self, method, metric):
        return np.array(self.scores[method])


PART = ("nocaps", "overall")


def test_gains_are_in_per_cent_of_the_level_before():
    trials = Scored({"old": [[40.0, 60.0]], "new": [[44.0, 66.0]], "low": [[-1.0, 2.0]]})
    gains = {"new gain": ("new", "old"), "old over low gain": ("old", "low")}
    found = comparison.rows("sweep", PART, trials, ["CIDEr"], gains)
    assert found.method.tolist() == ["old", "new", "low", *gains]
    assert found.value.tolist() == pytest.approx([50, 55, 0.5, 10, 9900])
    assert found.after.tolist() == ["old", "new", "low", "new", "old"]
    assert found.before.dropna().tolist() == ["old", "low"] and found.paper.isna().all()
    clear = comparison.rows("sweep", PART, trials, ["CIDEr"], gains, clear=True)
    assert clear.method.tolist()[3:] == ["new gain"]
    trials = Scored({"old": [[0.3, 0.5]], "new": [[0.2, 0.4]], "nothing": [[np.nan, np.nan]]})
    gains = {"g": ("new", "old"), "none": ("nothing", "old")}
    assert comparison.rows("sweep", PART, trials, ["CLIP"], gains).value.tolist()[2:] == [pytest.approx(25)]


def test_gains_stand_beside_those_that_the_papers_levels_make():
    trials = Scored(dict.fromkeys(["ground truth", "reconstruction", "ours", "without generation_loss"], [[1.0, 2.0]]))
    gains = {"reconstruction over ground truth gain": ("reconstruction", "ground truth")}
    found = comparison.rows("table9", PART, trials, ["CIDEr"], gains)
    assert found.paper.round(3).tolist() == [109.7, 102.3, -6.746]  # their levels, and 100 x -7.4 over the first
    gains = {"without generation_loss over ours gain": ("without generation_loss", "ours")}
    found = comparison.rows("table5", PART, trials, ["CLIP"], gains)
    assert found.paper.round(3).tolist() == [0.398, 0.424, -6.611]  # a distance that grows
    shown = comparison.table(found, {"ours": " over ours"})
    assert shown["verdict over ours"][1] == "not visible"
    assert shown.paper.tolist() == ["0.3978", "0.4241"] and shown.here.tolist() == ["1.5000 (1.0000 to 2.0000)"] * 2


def test_gains_are_judged_by_their_intervals_and_the_papers_numbers():
    change = Estimate(3.0, 1.0, 5.0, 9)
    gains = [tidy.row("table9", PART, "a gain", "CIDEr", change, published=p) for p in (5, -1, np.nan)]
    gains = pd.DataFrame(gains, index=list("xyz")).assign(before="b")
    found = comparison.verdicts(gains)
    assert found["gain, %"].to_dict() == {"x": change, "y": change, "z": change}
    assert found["smallest visible, %"].tolist() == [2.0, 2.0, 2.0] and set(found.verdict) == {"better"}
    assert found["visible from n"].tolist()[:2] == [9, 36] and pd.isna(found["visible from n"].iloc[2])  # (2 / 1)²


def test_a_wide_table_shows_six_columns_and_links_to_all_of_them():
    beside = {
        "dataset": "coco",
        "split": ["val", "test"] * 4,
        "metric": "CIDEr",
        "ours": "2.0",
        "interval": "1.0 to 3.0",
    }
    beside |= {"n": list(range(8)), "paper": "2.1", "same direction?": "yes", "visible at our n?": "no"}
    few, same = narrow.six(pd.DataFrame(beside).astype(str))
    assert len(few.columns) <= 6 and few["same direction?"].tolist() == ["yes"] * 8
    assert same.startswith("In each line: dataset coco; metric CIDEr;")
    page = tidy.markdown("tab-a", "A table.", pd.DataFrame(beside))
    assert 'All 9 columns: <a download="tab-a.csv"' in page
    packed = page.split("base64,")[1].split('"')[0]
    assert base64.b64decode(packed).decode().splitlines()[0] == ",".join(beside)


def test_a_wide_table_of_few_lines_is_turned_and_keeps_everything():
    few, same = narrow.six(pd.DataFrame({"way": ["a", "b"], **{f"c{k}": ["1", "2"] for k in range(8)}}))
    assert few.columns.tolist() == ["way", "a", "b"] and len(few) == 8 and same == ""


def test_a_level_is_not_judged_as_a_gain():
    level = pd.DataFrame([tidy.row("table3", PART, "BLIP", "CIDEr", Estimate(3.0, 1.0, 5.0, 9))]).assign(before=np.nan)
    with pytest.raises(ValueError, match="levels"):
        comparison.verdicts(level)

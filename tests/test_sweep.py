"""`dfl sweep`: every combination once, in a folder of its own, side by side at the end."""

import pandas as pd
import pytest

from dfl_utils.build import chapter, cli, cost, execution, sweep
from dfl_utils.exhibits import answers, tidy
from dfl_utils.scores.ranking import Estimate


def test_a_product_of_values_has_a_run_each_with_its_own_folder(house):
    asked = [("TOP_P", "0.5, 0.9"), ("NUM_IMAGES", "2,3"), ("PROFILE", "mini; mini, way=authors")]
    runs = sweep.plan(chapter.find("one"), asked, None, house.root)
    assert len(runs) == 8 == len({run.folder for run in runs})
    assert runs[1].values == {"TOP_P": 0.5, "NUM_IMAGES": 2, "PROFILE": "mini, way=authors"}
    (plain,) = sweep.plan(chapter.find("one"), [("TOP_P", "0.5")], "ci", house.root)
    assert plain.folder.name == "TOP_P=0.5_ci"


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ([], "A sweep takes each parameter once"),
        ([("TOP_P", "0.5"), ("TOP_P", "0.9")], "A sweep takes each parameter once"),
        ([("TOP_P", "0.5,,0.9")], "Parameter TOP_P has an empty value or one twice"),
        ([("TOP_P", "0.5,high")], "Parameter TOP_P of chapter one takes float, not 'high'"),
        ([("TOP_P", "0.5,7")], "Parameter TOP_P of chapter one is 7"),
    ],
)
def test_a_bad_value_is_refused_before_the_first_run(house, asked, sentence):
    with pytest.raises(ValueError, match=sentence):
        sweep.plan(chapter.find("one"), asked, None, house.root)


def test_runs_are_executed_once_and_a_failure_leaves_the_others(house, monkeypatch, capsys):
    monkeypatch.setattr(answers, "answer", lambda *arguments: None)
    monkeypatch.setattr(cost, "estimate", lambda *arguments: "a while")
    ran = []

    def run_chapter(name, values, scale, target, results, reuse):
        assert reuse and target.parent == results
        if values["NUM_IMAGES"] == 4:
            raise chapter.BuildFailed("Chapter one failed.")
        ran.append(values["NUM_IMAGES"])
        results.mkdir(parents=True, exist_ok=True)
        found = Estimate(float(values["NUM_IMAGES"]), 1.0, 9.0, values["NUM_IMAGES"])
        tidy.write(pd.DataFrame([tidy.row("table1", ("nocaps", "in"), "random", "CIDEr", found)]), results / "one.csv")
        tidy.write_json({}, results / "one.json")
        return target

    monkeypatch.setattr(execution, "run_chapter", run_chapter)
    assert cli.main(["sweep", "one", "-p", "NUM_IMAGES", "2,3,4", "--jobs", "2"]) == 1
    told = capsys.readouterr()
    assert sorted(ran) == [2, 3] and "NUM_IMAGES 4: a while\n3 runs" in told.out
    assert "1 of 3 runs failed: NUM_IMAGES 4. The others are kept." in told.err
    folder = house.root / "_build" / "sweep" / "one"
    rows = pd.read_csv(folder / "sweep.csv")
    assert rows[["run", "NUM_IMAGES", "value"]].values.tolist() == [["NUM_IMAGES 2", 2, 2.0], ["NUM_IMAGES 3", 3, 3.0]]
    page = (folder / "sweep.html").read_text()
    assert "<td>2.00 (1.00 to 9.00)</td>\n      <td>3.00 (1.00 to 9.00)</td>" in page
    assert 'href="NUM_IMAGES=2/one.ipynb"' in page and "<th>run</th>" not in page

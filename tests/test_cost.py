"""What chapters would cost: recorded calls, scaled by their parameters, times seconds a call."""

import pytest

from dfl_utils.build import chapter as chapters
from dfl_utils.build import cli, cost, publish

CAPTION = "finding_caption"


def stamp(**parameters):
    """A published run of one chapter: 60 captions in 6 s, 60 drawings of 50 steps in 120 s, scores in 3 s."""
    given = {"NUM_IMAGES": 4, "NUM_COCO_IMAGES": 2, "NUM_CANDIDATES": 10, "NUM_INFERENCE_STEPS": 50} | parameters
    kinds = {"captions": [60, 6.0], "images": [60, 120.0], "clip-originals": [6, 0.6], "quality-cider": [0, 3.0]}
    return {"chapters": {CAPTION: {"parameters": given, "kinds": kinds, "exhibits": ["figure3"]}}}


@pytest.fixture
def ran(monkeypatch):
    monkeypatch.setattr(publish, "stamp", lambda profile: stamp())
    return stamp()["chapters"][CAPTION]["parameters"]


def seconds(found):
    return {kind: round(3600 * hours, 6) for kind, hours in found.hours.items()}


def test_the_published_parameters_cost_what_was_recorded(ran):
    found = cost.cost(CAPTION, ran)
    assert found.calls == {"captions": 60, "images": 60, "clip-originals": 6, "quality-cider": 0}
    assert seconds(found) == {"captions": 6, "images": 120, "clip-originals": 0.6, "quality-cider": 3}


def test_images_candidates_and_steps_scale_what_grows_with_them(ran):
    found = cost.cost(CAPTION, ran | {"NUM_IMAGES": 10, "NUM_CANDIDATES": 5, "NUM_INFERENCE_STEPS": 10}, slower=2)
    assert found.calls == {"captions": 60, "images": 60, "clip-originals": 12, "quality-cider": 0}
    assert seconds(found) == {"captions": 12, "images": 48, "clip-originals": 2.4, "quality-cider": 6}


def test_trainings_grow_with_steps_and_seeds_and_their_batch():
    given = {"NUM_STEPS": 100, "NUM_SEEDS": 3, "BATCH_SIZE": 8, "NUM_IMAGES": 5, "NUM_VAL_IMAGES": 2}
    more = given | {"NUM_STEPS": 200, "NUM_SEEDS": 1}
    assert cost.amount("weights", more) / cost.amount("weights", given) == 2 / 3
    assert cost.amount("descriptions", more) / cost.amount("descriptions", given) == 2 / 4  # the start is said, too
    assert cost.EACH["weights"] == "BATCH_SIZE"


def test_a_gpu_takes_what_was_measured_on_one_and_others_by_their_peaks(ran, monkeypatch):
    names = dict.fromkeys(cost.BENCHMARK_OF.values(), 0.5)
    monkeypatch.setattr(cost, "benchmarks", lambda: names | {cost.BENCHMARK_OF["images"]: 2.0})
    twice = ran | {"NUM_INFERENCE_STEPS": 100}
    assert seconds(cost.cost(CAPTION, twice, cost.MEASURED)) == {
        **{"captions": 30, "images": 60 * 2 * 2.0, "clip-originals": 3},
        "quality-cider": 0,  # the processor's affair
    }
    ratio = cost.MEASURED.float16 / cost.PAPER.float16, cost.MEASURED.float32 / cost.PAPER.float32
    found = seconds(cost.cost(CAPTION, ran, cost.PAPER))
    assert found["captions"] == pytest.approx(30 * ratio[0]) and found["clip-originals"] == pytest.approx(3 * ratio[1])


def test_every_recorded_kind_of_the_published_run_can_be_scaled():
    for name, recorded in publish.stamp("mini")["chapters"].items():
        paper = chapters.effective(chapters.find(name), chapters.at_scale(chapters.find(name), "paper"))
        assert all(cost.amount(kind, paper) > 0 for kind in recorded["kinds"])
    assert {benchmark for benchmark in cost.BENCHMARK_OF.values()} <= cost.benchmarks().keys()


def test_the_command(capsys):
    assert cli.main(["cost", "table3", "--gpu", "a10", "-p", "NUM_SEEDS", "2", "--price", "2"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("finetuning") and "table3 table4 sweep" in said[0]
    assert said[2].startswith("at 2 an hour") and "ratio of the published peaks" in said[3]
    assert cli.main(["cost", "--price", "-1"]) == 2
    assert capsys.readouterr().err == "dfl: error: --price is -1: give that of an hour, at least 0.\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["table99"], "There is no exhibit or chapter table99: choose some of"),
        (["--gpu", "B52"], "There is no GPU 'B52' in the table: choose one of A10"),
        (["table3", "-p", "NUM_CATS", "2"], "None of these chapters has a parameter NUM_CATS"),
        (["table3", "-p", "NUM_SEEDS", "two"], "Parameter NUM_SEEDS of chapter finetuning takes int"),
        (["--here"], "--here measures this machine's processor"),
    ],
)
def test_bad_input_ends_in_one_sentence(capsys, words, message):
    assert cli.main(["cost", *words]) == 2
    assert message in capsys.readouterr().err

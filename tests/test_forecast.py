"""A forecast counts what the published run recorded, multiplies as by hand, and refuses what it does not know."""

import json

import pytest

from dfl_utils.build import calibration, cli, exhibit_work, forecast, gpus, workload
from dfl_utils.build.calibration import Calibration, Meter
from dfl_utils.build.forecast import Forecast, Row
from dfl_utils.build.unit_flops import FREE, UnitFlops, judge_of
from dfl_utils.build.workload import Training, Work
from dfl_utils.build.world_shapes import Shapes
from dfl_utils.store import provenance
from dfl_utils.store.store import RunStore
from dfl_utils.world import profile

STAMP = json.loads((provenance.ROOT / "results" / "mini" / "stamp.json").read_text(encoding="utf-8"))["chapters"]
PAPER = profile.configured("paper")


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A forecast in which every call takes 1 TFLOP."""
    monkeypatch.setattr(UnitFlops, "of", lambda self, work: 1e12)
    return Forecast(PAPER, RunStore(tmp_path))


# --- how many calls ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [name for name in exhibit_work.CHAPTERS if name != "tokenizer"])
def test_a_chapter_asks_the_models_as_often_as_its_published_run_recorded(name):
    run = STAMP[name]["parameters"]
    works = [work for part in exhibit_work.exhibits(name, **run).values() for work in part]
    assert workload.recorded(works) == STAMP[name]["model_calls"]


def test_every_chapter_that_asks_a_model_is_counted():
    assert exhibit_work.CHAPTERS.keys() == STAMP.keys()


def test_shared_work_is_counted_once():
    ten, twenty = Work("images", "a", 100, 10), Work("images", "a", 30, 20)
    assert workload.calls([ten, twenty]) == {ten: 1000 + 30 * 10}
    assert workload.calls([ten, Work("images", "a", 40, 5), Work("images", "b", 7)]) == {
        ten: 1000,
        Work("images", "b", 7): 7,
    }
    larger = Work("images", "a", 100, 10, size=512)
    assert len(workload.calls([ten, larger])) == 2


def test_the_paper_s_table_1_is_two_data_sets_of_ten_candidates():
    works = exhibit_work.exhibits("finding_caption", "paper")["table1"]
    found = workload.calls(works)
    assert {work.of[:6]: n for work, n in found.items() if work.kind == "images"} == {
        "nocaps": 45_000,
        "coco, ": 20_000,
    }
    assert all(work.size == 512 and work.steps == 50 for work in found if work.kind == "images")


def test_beside_blip_2_the_paper_draws_smaller():
    works = exhibit_work.exhibits("models", "paper")["table8"]
    assert {work.size for work in works if work.kind == "images"} == {512, 384}
    assert {work.size for work in exhibit_work.exhibits("models")["table8"] if work.kind == "images"} == {64}


# --- what a call costs ------------------------------------------------------------------------------------
def test_flops_of_the_published_models_are_those_counted_before():
    """Of one image or pair: U-Net pass 0.80, encoding 1.12 TFLOP; of a generation step 2.81 with the encoding."""
    units = UnitFlops(Shapes(PAPER))
    drawing = Work("images", "", 1, 1, "stable-diffusion", 50, 512)
    assert units.denoising(drawing) == pytest.approx(2 * 0.80e12, rel=0.01)
    assert units.of(Work("latents", "", 1, size=512)) == pytest.approx(1.12e12, rel=0.01)
    assert units.of(drawing) == 50 * units.denoising(drawing) + units.decoding(drawing)
    alone = Training(("generation_loss",), ("generator",))
    step = Work("finetuning", "", 1, model="blip-base", size=512, training=alone)
    assert units.of(step) == pytest.approx(8 * (2.81e12 - 1.12e12), rel=0.01)


def test_a_folder_s_own_shapes_are_counted():
    units = UnitFlops(Shapes(profile.load("mini")))
    one, ten = (units.of(Work("captions", "", 1, each, "blip-base")) for each in (1, 10))
    beams = units.of(Work("readings", "", 1, 1, "blip-base"))
    encoded = (one - ten) / (1 - 1 / 10)
    assert beams == pytest.approx(3 * (one - encoded) + encoded)


def test_kinds_and_their_judges():
    kinds = ("clip-similarity", "dino-originals", "quality-clip-text", "clip-score", "quality-sbert", "labels")
    assert [judge_of(kind) for kind in kinds] == ["clip", "dino", "clip-text", "clip-text", "sbert", "features"]
    with pytest.raises(ValueError, match="There is no judge 'nobody'"):
        UnitFlops(Shapes(PAPER)).of(Work("nobody", "", 1))


# --- hours, disk, money -----------------------------------------------------------------------------------
def test_hours_are_flops_over_a_share_of_the_peak():
    row = Row("", "", 1, {"float16": 125e12 * 3600, "float32": 31.2e12 * 1800}, 0)
    assert row.hours(gpus.PAPER, (0.25, 0.5)) == pytest.approx((3.0, 6.0))


def test_an_exhibit_s_flops_and_disk(made):
    (row,) = made.rows(["Figure 3"])
    assert row.flops["float16"] == 1e12 * (45_000 + 45_000)  # captions and drawings
    assert row.flops["float32"] == 1e12 * (2 * 45_000 + 2 * 4_500 + 2 * 45_000)  # cosines, originals, scores
    assert row.calls == 279_000
    drawings = 45_000 * 512 * 512 * 3
    assert drawings < row.disk < 1.01 * drawings


def test_a_row_knows_its_flops_by_kind_too(made):
    (row,) = made.rows(["Figure 3"])
    by_type = {dtype: sum(flops for (_, other), flops in row.kinds.items() if other == dtype) for dtype in row.flops}
    assert by_type == row.flops
    assert row.kinds["images", "float16"] == row.kinds["captions", "float16"] == 45_000e12


def test_measured_hours_take_each_kind_at_its_own_share(monkeypatch):
    monkeypatch.setattr(gpus, "use", lambda: {"captions": 0.5, "training": 0.25})
    hour = {dtype: 3600 * gpus.MEASURED.peak(dtype) for dtype in ("float16", "float32")}
    kinds = {("captions", "float16"): hour["float16"] / 2, ("training", "float32"): hour["float32"] / 8}
    assert Row("", "", 1, {}, 0, kinds).hours_measured() == pytest.approx(1.0 + 0.5)


def test_every_kind_of_work_was_measured_on_a_card():
    kinds = {
        work.kind for name in exhibit_work.CHAPTERS for part in exhibit_work.exhibits(name).values() for work in part
    }
    assert {forecast.kind_of(kind) for kind in kinds} == gpus.use().keys()
    assert all(0 < share < 1 for share in gpus.use().values())


def test_what_exhibits_share_is_paid_once(made):
    one, two = made.rows(["figure3", "baselines"])[0], made.rows(["baselines"])
    together = made.total(["figure3", "baselines"])
    assert together.flops["float16"] < one.flops["float16"] + sum(row.flops["float16"] for row in two)
    assert [row.exhibit for row in made.rows(["models"])] == ["sanity check", "table8"]


def test_a_training_keeps_whole_checkpoints(made):
    runs = {work.training.train: work for _, _, works in made.chosen(["table5"]) for work in works if work.training}
    sizes = {train: made._bytes(work, 70_000) for train, work in runs.items()}
    captioner, generator = 4 * 223_971_644, 4 * (859_520_964 + 83_653_863 + 123_060_480)
    assert sizes == {("captioner",): captioner, ("generator",): generator, workload.ROLES: captioner + generator}


def test_the_paper_s_card_stands_beside_any_other(made):
    rows = made.rows(["figure3"])
    line = forecast.table(rows, gpus.choose("h100"), (0.2, 0.5))[0]
    assert {"hours, H100", "hours, H100, measured use", "hours, A10"} <= line.keys() and "money" not in line
    own = forecast.table(rows, gpus.PAPER, (0.2, 0.5), 2.0)[0]
    assert [key for key in own if key.startswith("hours")] == ["hours, A10"] and "money" in own


def test_a_gpu_by_its_peak():
    gpu = gpus.choose(tflops=100.0)
    assert gpu.peak("float16") == gpu.peak("float32") == 1e14
    assert gpus.choose("rtx4090").memory == 24 and all(card.source for card in gpus.GPUS.values())


def test_counts_are_kept_in_the_store(made, monkeypatch):
    made.rows(["figure3"])
    monkeypatch.setattr(UnitFlops, "of", None)  # a second time counts nothing
    assert Forecast(PAPER, made.store).rows(["figure3"])[0].calls == 279_000


# --- this machine's seconds -------------------------------------------------------------------------------
def test_seconds_are_flops_over_the_measured_rate():
    class Units:
        of = staticmethod(lambda work: {"captions": 4.0, "finetuning": 8.0}[work.kind])
        steps, denoising, decoding = (staticmethod(lambda work, value=value: value) for value in (50, 2.0, 6.0))

    found = Calibration({"captions": 2.0, "training": 4.0, "denoising": 10.0, "decoding": 3.0}, start=5.0, peak=20.0)
    captions, drawings = Work("captions", "", 3, 2), Work("images", "", 3, 2)
    training = Work("finetuning", "", 7, training=Training())
    assert found.seconds([captions, drawings, training], Units) == {
        captions: 6 * 4 / 2,
        drawings: 6 * (50 * 2 / 10 + 6 / 3),
        training: 7 * 8 / 4 + 5,
    }
    assert found.utilisation["denoising"] == 0.5


def test_every_kind_has_a_rate():
    kinds = {
        work.kind for name in exhibit_work.CHAPTERS for part in exhibit_work.exhibits(name).values() for work in part
    }
    rated = {calibration.rate_of(kind) for kind in kinds if kind not in ("images", *FREE)}
    assert rated == {"captions", "readings", "training", "decoding", "clip", "dino", "features", "clip-text", "sbert"}


def test_a_calibration_needs_images():
    with pytest.raises(ValueError, match="A calibration needs 16 images and 8 pairs, not 0 and 0"):
        Meter(profile.load("mini"), [], [])


# --- bad input --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tabel3"], "There is no exhibit or chapter tabel3: choose some of finding_caption"),
        (["--gpu", "A10", "--tflops", "3"], "Name one GPU"),
        (["--gpu", "B200"], "There is no GPU 'B200' in the table: choose one of A10"),
        (["--tflops", "-1"], "--tflops is -1: give the peak"),
        (["--utilisation", "0.5", "0.2"], "The utilisation is 0.5 to 0.2"),
        (["--profile", "nobody"], "Unknown profile 'nobody'"),
        (["figure3", "--price", "-2"], "The price is -2 an hour"),
    ],
)
def test_one_sentence_for_a_mistake(arguments, message, made, monkeypatch, capsys):
    monkeypatch.setenv("DFL_STORE", str(made.store.root))
    assert cli.main(["cost", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"dfl: error: {message}")


def test_the_table_and_its_assumptions(made, monkeypatch, capsys):
    monkeypatch.setenv("DFL_STORE", str(made.store.root))
    assert cli.main(["cost", "table1", "--gpu", "L4", "--price", "0.5"]) == 0
    told = capsys.readouterr().out
    assert "hours, L4" in told and "hours, A10" in told and "together" in told
    assert "assumed 0.2 to 0.5" in told and "the price that was given" in told

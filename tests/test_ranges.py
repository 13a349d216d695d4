"""What the chapters' parameters may be, and that each has a range."""

import json
import re
import shlex

import pytest

from dfl_utils.build import chapter as chapters
from dfl_utils.build import cli, ranges
from dfl_utils.build.execution import run_chapter
from dfl_utils.game import self_training
from dfl_utils.game.scorer import JUDGES
from dfl_utils.models.similarity import ENCODERS
from dfl_utils.store import provenance
from dfl_utils.world import profile

CHAPTERS = list(chapters.sources())


@pytest.mark.parametrize("name", CHAPTERS)
def test_each_parameter_has_a_range_that_every_scale_keeps(name):
    source = chapters.find(name)
    for scale in chapters.SCALES:
        values = chapters.effective(source, chapters.at_scale(source, scale))
        assert all(ranges.find(name, parameter) for parameter in values)
        ranges.check(name, values, machine=scale != "paper")


def test_every_command_that_a_page_names_is_taken():
    """README's, the pages' and the exercises': each parameter is the chapter's, and in its range."""
    root, told = provenance.ROOT, []
    for path in (*root.glob("book/*.ipynb"), *root.glob("book/*.md"), *root.glob("*.md"), *root.glob("cluster/*")):
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".ipynb":
            cells = json.loads(text)["cells"]
            text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        told += re.findall(r"\bdfl (run|sweep) ([^`\n#]+)", text)
    commands = [(command, shlex.split(words)) for command, words in told if words.split()[0] in CHAPTERS]
    assert len(commands) >= 50
    for command, (name, *words) in commands:
        source, scale = chapters.find(name), "published"
        if "--scale" in words:
            scale = words[words.index("--scale") + 1]
        given = {words[k + 1]: words[k + 2] for k, word in enumerate(words) if word == "-p"}
        if command == "sweep":
            given = {key: text.split(",")[0] for key, text in given.items()}
        values = chapters.at_scale(source, scale) | chapters.check(source, given, typed=True)
        ranges.check(name, chapters.effective(source, values), machine=False)


def test_the_choices_are_those_that_the_package_knows():
    for name, parameter, known in (
        ("models", "JUDGE", JUDGES),
        ("beyond", "JUDGE", ENCODERS),
        ("own_pair", "SIMILARITY", ENCODERS),
        ("beyond", "PICKS", self_training.PICKS),
    ):
        for value in known:
            ranges.find(name, parameter)(value)


@pytest.mark.parametrize(
    ("chapter", "values", "said"),
    [
        ("finding_caption", {"TOP_P": 7.0}, "TOP_P of chapter finding_caption is 7.0: give more than 0 and at most 1."),
        ("finding_caption", {"NUM_IMAGES": 0}, "NUM_IMAGES of chapter finding_caption is 0: give at least 1."),
        ("judge", {"DATASET": "coco"}, "SPLIT of chapter judge is 'overall': choose one of test."),
        ("judge", {"OTHER_GENERATOR": "lafite"}, "is 'lafite': choose one of stable-diffusion, amused."),
        ("finetuning", {"LR": 0.0}, "LR of chapter finetuning is 0.0: give more than 0 and less than 1."),
        ("finetuning", {"SWEEP_LRS": "1e-4,3e-4"}, "1e-4,3e-4 is none: give numbers with spaces between."),
        (
            "finetuning",
            {"CAPTIONERS": "blip-base blip3"},
            "choose one of blip-base, blip-base-web-1000, blip-large, blip2.",
        ),
        (
            "headroom",
            {"LONG_CAPTIONERS": "blip-large"},
            "is 'blip-large': choose one of blip-base-web-1000, blip-base.",
        ),
        ("finetuning", {"NUM_DRAWN": 481}, "NUM_DRAWN of chapter finetuning is 481: give at least 1 and at most 480."),
        ("judge", {"PROFILE": "maxi"}, "Unknown profile 'maxi': choose one of mini, paper."),
        ("judge", {"PROFILE": "mini, top_p=7"}, "top_p of a profile is 7.0: give more than 0 and at most 1."),
        ("judge", {"PROFILE": "mini, dtype=float16"}, "dtype is float16, which is for GPUs"),
        ("judge", {"PROFILE": f"mini, captioner={profile.MINI}/clip"}, "clip is no captioner"),
        ("own_pair", {"CAPTIONER": "no/such/folder"}, "There is no model folder"),
        ("own_pair", {"GENERATOR": "../data/mini/clip"}, "clip is a single model, no pipeline"),
        ("finetuning", {"PROFILE": "mini, way=authors"}, "way=authors knows no blip2: take another way"),
        (
            "finding_caption",
            {"PROFILE": f"mini, captioner={profile.MINI}/blip2"},
            "way=authors knows a BlipForConditionalGeneration alone as the captioner, and",
        ),
        ("own_pair", {"PROFILE": "mini, way=authors", "GENERATOR": "../data/mini/amused"}, "is a AmusedPipeline: take"),
    ],
)
def test_a_value_out_of_its_range_is_refused_before_anything_runs(chapter, values, said):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        run_chapter(chapter, values)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_the_command_says_how_long_it_will_work(monkeypatch, capsys):
    monkeypatch.setattr("dfl_utils.build.execution.run_chapter", lambda *arguments: "copy")
    assert cli.main(["run", "finding_caption", "-p", "NUM_IMAGES", "1000"]) == 0
    assert " of models' work on the published run's processor, less what" in capsys.readouterr().out
    assert cli.main(["run", "own_pair"]) == 0
    assert "own_pair: how long it takes is not known" in capsys.readouterr().out
    assert cli.main(["cost", "table3", "-p", "NUM_SEEDS", "0"]) == 2
    assert "NUM_SEEDS of chapter finetuning is 0" in capsys.readouterr().err


def test_real_spice_is_refused_before_anything_runs_where_corenlp_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr("dfl_utils.scores.spice.LIBRARY", tmp_path)
    with pytest.raises(
        FileNotFoundError, match="SPICE needs .* bring them by `dfl fetch .*, or take the metric SPICE-l"
    ):
        run_chapter("finding_caption", {"SPICE": "SPICE"})


def test_a_model_may_be_left_out():
    ranges.check("finding_caption", {"PROFILE": "mini, probe=none, tiny_decoder=none"})

"""Profiles: what they name, how fields are replaced, and that the paper's is the paper's."""

import subprocess
import sys

import pytest

from dfl_utils.store import store
from dfl_utils.world import profile

PAPER = profile.PROFILES["paper"]


def test_importing_profiles_and_the_catalogue_leaves_torch_alone():
    code = "import sys, dfl_utils.world.profile, dfl_utils.build.catalogue; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_images_beside_blip2_are_smaller_and_never_larger_than_asked():
    sizes = {name: PAPER.pair(captioner=name).image_size for name in PAPER.captioners}
    assert sizes == {"blip-base": 512, "blip-large": 512, "blip2": 384}
    assert profile.configured("paper", image_size=256).pair(captioner="blip2").image_size == 256
    assert PAPER.pair(generator="amused").image_size == 512


def test_environment_variables_name_the_roots(tmp_path):
    code = "from dfl_utils.world.profile import PROFILES; p = PROFILES['paper']\n"
    code += "print(p.coco_root, p.nocaps_root, p.data_root, p.models_root, p.dataset_root('nocaps'), p.inception)"
    # As a scheduler's file has them: nobody has expanded a "~", and a relative one is meant from where `dfl` was typed.
    variables = {"DFL_COCO": "~/c", "DFL_NOCAPS": "", "DFL_DATA": "/d", "DFL_MODELS": "m", "DFL_INCEPTION": ""}
    variables |= {"HOME": "/home/ann", "DFL_FROM": "/from"}
    done = subprocess.run([sys.executable, "-c", code], env=variables, cwd=profile.ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["/home/ann/c", "None", "/d", "/from/m", "/d/nocaps", "None"]


def test_a_store_is_named_as_a_shell_would_mean_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for named, meant in (
        ("~/s", tmp_path / "s"),
        ("t", tmp_path / "t"),
        ("~nobody-here/s", tmp_path / "~nobody-here/s"),
        ("~/s\n", tmp_path / "s"),
        (" ", store.provenance.ROOT / ".store"),
    ):
        monkeypatch.setenv("DFL_STORE", named)
        assert store.default_root() == meant
    assert profile.place("~nobody-here/s").name == "s"


def test_the_paper_is_only_loaded_where_a_gpu_is_and_looked_at_everywhere(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert profile.load("paper").device == "cuda"
    for device in ("cuda:1", "gpu", "meta"):
        with pytest.raises(ValueError, match=f"wants the device '{device}', which is not here: run it where there is"):
            profile.load("paper", device=device)
    assert profile.configured("paper").name == "paper"


def test_one_parameter_names_a_profile_and_its_changes(tmp_path):
    found = profile.configured(
        f"paper, coco_root={tmp_path}, captioner=my/blip, num_inference_steps=20, inception=none"
    )
    assert (found.coco_root, found.captioner, found.num_inference_steps) == (tmp_path, "my/blip", 20)
    assert found.inception is None and found.name == "paper"
    assert profile.configured("mini, top_p=0.5", top_p=0.7).top_p == 0.7
    changed = profile.configured("paper", data_root=tmp_path, coco_root=str(tmp_path / "else"))
    assert changed.dataset_root("coco") == tmp_path / "else"
    assert changed.dataset_root("nocaps") == tmp_path / "nocaps"


def test_a_way_is_a_set_of_fields_and_what_is_named_beside_it_goes_before():
    authors, mini = profile.configured("paper, way=authors, max_words=25"), profile.configured("mini", way="authors")
    assert (authors.repetition_penalty, authors.max_words, authors.squeeze, mini.squeeze) == (1.1, 25, 384, None)
    assert (PAPER.clip_projected, authors.clip_projected, mini.clip_projected) == (True, False, False)
    assert authors.clip != PAPER.clip and mini.clip == profile.configured("mini").clip
    with pytest.raises(ValueError, match="Unknown way 'theirs': choose one of paper, blip-repo, authors"):
        profile.configured("mini, way=theirs")
    assert (
        mini.pair("blip-base", "stable-diffusion").captioner == profile.configured("mini").pair("blip-base").captioner
    )
    for pair in ({"captioner": "blip2"}, {"generator": "amused"}):
        with pytest.raises(
            ValueError, match=f"way=authors knows no {min(pair.values())}: take another way, or another"
        ):
            mini.pair(**pair)


def test_a_folders_name_may_hold_commas():
    named = profile.with_fields("mini", [("captioner", "/data/a, b,c/blip"), ("top_p", "0.5")])
    read = profile.configured(named)
    assert (read.captioner, read.top_p) == ("/data/a, b,c/blip", 0.5)


def test_a_path_is_meant_from_where_the_command_was_typed(tmp_path, monkeypatch):
    (tmp_path / "typed" / "mine").mkdir(parents=True)
    (tmp_path / "book" / "other").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "book")
    monkeypatch.setenv("DFL_FROM", str(tmp_path / "typed"))
    monkeypatch.setenv("HOME", str(tmp_path / "typed"))
    mini = profile.load("mini")
    assert mini.locate("mine") == mini.locate("~/mine") == str(tmp_path / "typed" / "mine")
    assert mini.locate("other") == "other"
    assert profile.configured("mini, data_root=mine").data_root == tmp_path / "typed" / "mine"


def test_what_is_no_model_folder_is_told_apart(tmp_path):
    for model, sentence in (
        (tmp_path / "nowhere", f"There is no model folder {tmp_path}/nowhere: give one that is there"),
        ("stabilityai/sd-turbo", "if stabilityai/sd-turbo is a model of the hub, this profile does not go online"),
        (profile.MINI / "gone", "There is no model folder .*gone: restore it by `git checkout -- data/mini`"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=sentence):
            profile.load("mini").locate(str(model))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("mini, top_p=0,9", "A profile takes no top_p=0,9: see"),
        ("mini, captioner", "Unknown profile 'mini, captioner': choose one of mini"),
        ("paper, coco_roots=/data", "A profile takes no coco_roots=/data: see"),
        ("paper, top_p=much", "A profile takes no top_p=much"),
        ("papers, top_p=0.5", "Unknown profile 'papers': choose one of mini, paper."),
        ("mini, min_words=40", "min_words of a profile is 40: give at most max_words, 30."),
        ("mini, image_size=60", "image_size of a profile is 60: give at least 8 and a multiple of 8."),
        ("mini, sbert_pooling=max", "sbert_pooling of a profile is 'max': choose one of cls, mean."),
    ],
)
def test_a_wrong_change_behind_a_profile_is_named(name, sentence):
    with pytest.raises(ValueError, match=sentence):
        profile.configured(name)

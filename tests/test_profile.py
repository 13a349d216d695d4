"""Profiles: what they name, how fields are replaced, and that the paper's is the paper's."""

import subprocess
import sys

import pytest

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
    variables = {"DFL_COCO": "/c", "DFL_NOCAPS": "", "DFL_DATA": "/d", "DFL_INCEPTION": ""}
    done = subprocess.run([sys.executable, "-c", code], env=variables, cwd=profile.ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["/c", "None", "/d", "/d/models", "/d/nocaps", "None"]


def test_the_paper_is_only_loaded_where_a_gpu_is_and_looked_at_everywhere(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match="Profile 'paper' needs a CUDA GPU and none is visible"):
        profile.load("paper")
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


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("paper, coco_roots=/data", "A profile takes no coco_roots=/data: see"),
        ("paper, top_p=much", "A profile takes no top_p=much"),
        ("papers, top_p=0.5", "Unknown profile 'papers': choose one of mini, paper."),
    ],
)
def test_a_wrong_change_behind_a_profile_is_named(name, sentence):
    with pytest.raises(ValueError, match=sentence):
        profile.configured(name)

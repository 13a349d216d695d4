"""`dfl doctor`: every gap with the step that mends it, on machines that the test makes up; and no connection, ever."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from dfl_utils.build import catalogue, cli, doctor
from dfl_utils.world import profile


def machine(gpus=(("NVIDIA A10", 23 * 2**30),), cuda=True, free=10**12, writable=True):
    """A machine that has everything, but for what a test takes away."""
    return SimpleNamespace(
        gpus=lambda: list(gpus),
        torch_has_cuda=lambda: cuda,
        disk=lambda path: (free, 1),
        can_write=lambda path: writable,
    )


@pytest.fixture(autouse=True)
def unplugged(monkeypatch):
    """A socket is an error in all of these tests, and the hub's cache is empty."""

    def refuse(*_, **__):
        raise AssertionError("the doctor opened a socket")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr(doctor, "snapshot", lambda model: None)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The paper's profile with all that it needs: each model a small whole folder, data of a few images."""
    for model in catalogue.MODELS:
        shutil.copytree(profile.MINI / "dino", tmp_path / "models" / model)
    write_data(tmp_path)
    vectors, inception = tmp_path / "models/glove-wiki-gigaword-200.gz", tmp_path / "inception.pth"
    vectors.write_bytes(b"v")
    inception.write_bytes(b"i")
    counts = {"coco-train": 1, "coco-val": 2, "nocaps-images": 2}
    small = [replace(file, count=counts.get(file.name), bytes=1 if file.bytes else None) for file in catalogue.FILES]
    monkeypatch.setattr(catalogue, "files", lambda asked: [file for file in small if file.name != "corenlp"])
    fields = {"models_root": tmp_path / "models", "inception": str(inception), "word_vectors": vectors}
    return profile.configured("paper", data_root=tmp_path, coco_root=None, nocaps_root=None, **fields)


def write_data(root: Path) -> None:
    karpathy = []
    for cocoid, filepath, split in ((9, "train2014", "train"), (7, "val2014", "val"), (42, "val2014", "test")):
        entry = {"cocoid": cocoid, "filepath": filepath, "filename": f"{cocoid}.jpg", "split": split}
        karpathy.append(entry | {"sentences": [{"raw": "a cat"}]})
        save(root / "coco" / filepath / f"{cocoid}.jpg")
    (root / "coco/dataset_coco.json").write_text(json.dumps({"images": karpathy}))
    records = [{"id": k, "file_name": f"{k}.jpg", "domain": "in-domain"} for k in range(2)]
    captions = [{"id": k, "image_id": k, "caption": "a dog"} for k in range(2)]
    for k in range(2):
        save(root / f"nocaps/images/val/{k}.jpg")
    (root / "nocaps" / catalogue.NOCAPS).write_text(json.dumps({"images": records, "annotations": captions}))


def save(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3)).save(path)


def gaps(asked: profile.Profile, **facts) -> list[str]:
    return [str(finding) for finding in doctor.examine(asked, machine(**facts)) if not finding.ok]


def test_nothing_is_missing_where_everything_is_there(here):
    text = "\n".join(map(str, doctor.examine(here, machine())))
    assert "GAP" not in text
    assert "ok   the largest GPU has 23 GiB of 22 GiB" in text
    assert "ok   coco: 1 images of train, 1 images of val, 1 images of test" in text
    assert "ok   model facebook/dino-vitb8 at 6bd5b77" in text


@pytest.mark.parametrize(
    ("facts", "gap"),
    [
        ({"gpus": []}, "no GPU is visible to nvidia-smi - mend: run on a machine with such a GPU"),
        ({"gpus": [("T4", 15 * 2**30)]}, "the largest GPU has 15 GiB of 22 GiB - mend: run on a machine with"),
        ({"cuda": False}, "torch is a build for the CPU - mend: install the build of the same version"),
        ({"writable": False}, "cannot be written - mend: set DFL_STORE to a folder of yours"),
    ],
)
def test_gaps_of_the_machine(here, facts, gap):
    (line,) = gaps(here, **facts)
    assert line.startswith("GAP  ") and gap in line


@pytest.mark.parametrize(
    ("lost", "name", "gap"),
    [
        ("models/openai/clip-vit-large-patch14", "openai/clip-vit-large-patch14", " at 32bd642 is missing"),
        ("models/facebook/dino-vitb8/config.json", "facebook/dino-vitb8", " at 6bd5b77 lacks config.json"),
        ("coco/train2014", "coco-train", " is missing: "),
        ("coco/val2014/7.jpg", "coco-val", " has 1 of 2 images: "),
        (f"nocaps/{catalogue.NOCAPS}", "nocaps-captions", " is missing: "),
        ("models/glove-wiki-gigaword-200.gz", "word-vectors", " is missing: "),
    ],
)
def test_each_lost_file_is_one_gap_with_its_command(here, lost, name, gap):
    (here.data_root / lost).rename(here.data_root / "lost")
    (line,) = gaps(here)
    assert f"{name}{gap}" in line and "mend: dfl fetch --profile paper" in line and line.endswith(f"--only {name}")


def test_broken_annotations_are_found_by_the_runs_own_reader(here):
    (here.data_root / "coco/dataset_coco.json").write_text("{")
    (line,) = gaps(here)
    assert re.search("coco: .*dataset_coco.json is not valid JSON", line)
    assert "mend: delete the file or folder that it names, then dfl fetch" in line


def test_an_image_of_the_annotations_that_is_not_there_is_found(here):
    (here.data_root / "coco/val2014/7.jpg").rename(here.data_root / "coco/val2014/8.jpg")
    (line,) = gaps(here)
    assert re.search(r"coco: .*7.jpg is missing \(1 of 1 images are\) - mend: delete", line)


def test_a_licence_and_the_room_are_asked_for_what_is_missing(here):
    (here.models_root / "amused/amused-512").rename(here.data_root / "lost")
    model, licence, room = gaps(here, free=10**9)
    assert model.startswith("GAP  model amused/amused-512 at 956bebb is missing")
    assert licence.startswith(
        "GAP  licence openrail++ of amused/amused-512 asks to be accepted - mend: read it at http"
    )
    assert licence.endswith("--only amused/amused-512 --accept openrail++")
    assert "about 3.5 GB are still to come to the disk of " in room and "1.0 GB are free - mend: make room" in room


def test_replaced_models_are_examined_and_named_in_the_commands(here, tmp_path):
    changed = replace(here, clip="lab/clip", dino=str(tmp_path / "nowhere"), probe=None)
    first, second = gaps(changed)
    assert first == f"GAP  model {tmp_path}/nowhere is missing - mend: restore it from git, or name another folder"
    assert "model lab/clip is missing - mend: dfl fetch --profile paper " in second
    assert "-p clip lab/clip" in second and second.endswith("--only lab/clip")


def test_the_embedded_profile_asks_for_its_data_alone(mini, tmp_path):
    assert gaps(mini, gpus=[], cuda=False) == []
    (gap,) = gaps(replace(mini, data_root=tmp_path / "none"), gpus=[])
    assert gap == f"GAP  data are missing: {tmp_path}/none - mend: dfl data"


@pytest.mark.parametrize(("has", "code", "end"), [(True, 0, "nothing is missing"), (False, 1, "1 gap")])
def test_the_exit_status_says_whether_there_is_a_gap(has, code, end, monkeypatch, capsys):
    finding = doctor.Finding("a thing", "" if has else "a step")
    monkeypatch.setattr(doctor, "examine", lambda asked: [finding])
    assert cli.main(["doctor", "--profile", "mini"]) == code
    assert capsys.readouterr().out == f"{finding}\n{end}\n"


def test_gpus_are_read_off_nvidia_smi(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho \"$*\" > \"$0.said\"\necho 'NVIDIA A10, 23028'\necho 'NVIDIA H200, 143771'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert doctor.Machine().gpus() == [("NVIDIA A10", 23028 * 2**20), ("NVIDIA H200", 143771 * 2**20)]
    assert (tmp_path / "nvidia-smi.said").read_text().split()[-2:] == ["-i", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert doctor.Machine().gpus() == []


def test_a_folder_that_is_not_there_yet_is_asked_by_its_parent(tmp_path):
    real = doctor.Machine()
    assert real.disk(tmp_path / "a/b")[1] == tmp_path.stat().st_dev and real.can_write(tmp_path / "a/b")


def test_the_doctor_leaves_torch_alone():
    code = "import sys; from dfl_utils.build import doctor; from dfl_utils.world import profile\n"
    code += "[doctor.examine(profile.configured(name)) for name in profile.PROFILES]; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

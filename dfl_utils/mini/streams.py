"""Which scenes the shipped models were trained on, so that those they are judged by can be told apart.

python -m dfl_utils.mini.streams > data/mini/met_in_training.json
"""

import json
from collections.abc import Iterable, Iterator
from itertools import chain

from dfl_utils.mini import autoencoder, captioning, judges, pretrain, web
from dfl_utils.world import foils, scenes, splits

CAPTIONERS = ("blip-base", "blip-large", "blip2")


def of_captioners() -> Iterator[scenes.Scene]:
    """Web scenes that captioners were pretrained on: development scenes were not kept clear of them.

    Those of the U-Net, of DINO and of the patches' classifiers are among them, where two or three things stand.
    """
    steps = max(pretrain.shipped_steps(captioner, "/web") for captioner in CAPTIONERS)
    return (web.scene(k) for k in range(captioning.BATCH * steps))


def of_autoencoder() -> Iterator[scenes.Scene]:
    """What the autoencoder was trained on: the one model whose draws do not keep clear of the test scenes."""
    cropped = autoencoder.CROP_BATCH * autoencoder.CROP_STEPS
    whole = autoencoder.SCENE_BATCH * (autoencoder.CROP_STEPS + autoencoder.SCENE_STEPS)
    return (scenes.sample(f"web/{k}") for k in range(max(cropped, whole)))


def of_clip() -> Iterator[scenes.Scene]:
    """What CLIP was trained on: its one-change variations may meet a test scene too."""
    return (scene for step in range(judges.CLIP_STEPS) for scene in judges.clip_batch(step))


def unseen(items: list[splits.Item], trained_on: Iterable[scenes.Scene]) -> list[int]:
    """Places of the items whose scene is none of those; replaying a training stream takes seconds."""
    seen = _names(trained_on)
    return [k for k, item in enumerate(items) if (item.scene.things, item.scene.ground) not in seen]


def _names(of: Iterable[scenes.Scene]) -> set[tuple]:
    return {(scene.things, scene.ground) for scene in of}


def met_quartets() -> list[int]:
    """Image ids of NoCaps-like scenes of which a quartet holds a scene that one of the streams, or COCO-like training
    pairs, held: itself or a partner."""
    trained = (item.scene for item in splits.items("coco", "train"))
    seen = _names(chain(of_captioners(), of_autoencoder(), of_clip(), trained))
    items = [item for name in ("in", "near", "out") for item in splits.items("nocaps", name)]
    quartets = ((item.image_id, foils.quartet(kind, item.scene)) for item in items for kind in foils.QUARTETS)
    return sorted({k for k, made in quartets if made and _names(made.scenes) & seen})


if __name__ == "__main__":
    print(json.dumps(met_quartets()))

"""Worse generators: trained from nothing and left, or with noisy weights; and how skilled one is."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from diffusers import UNet2DConditionModel

from dfl_utils.game import skill
from dfl_utils.mini import diffusion, painters
from dfl_utils.models import denoising
from dfl_utils.models.workshop import Workshop
from dfl_utils.store.store import RunStore
from dfl_utils.world import scenes
from dfl_utils.world.profile import MINI

SMALL = {"batch": 2, "num_scenes": 3}


@pytest.fixture
def shop(mini, tmp_path):
    return Workshop(mini, RunStore(tmp_path / "store"), progress=False)


def weights_of(one):
    return UNet2DConditionModel.from_pretrained(f"{one.provide(one.generator)}/unet", variant=variant()).state_dict()


def variant():
    names = [path.name for path in (MINI / "stable-diffusion" / "unet").glob("*.safetensors")]
    return "fp16" if "fp16" in names[0] else None


def digests(found):
    return [one.trained(one.generator).split()[-1] for one in found.values()]


def test_a_snapshot_is_the_same_in_one_go_by_itself_and_after_a_later_one(shop, mini, tmp_path):
    together = digests(painters.stopped(shop, [1, 2], **SMALL))
    alone = Workshop(mini, RunStore(tmp_path / "alone"), progress=False)
    assert digests(painters.stopped(alone, [2], **SMALL)) == together[1:]
    assert digests(painters.stopped(alone, [1], **SMALL)) == together[:1]
    assert together[0] != together[1]


def test_where_the_digests_have_travelled_nothing_is_trained(shop, monkeypatch):
    first = painters.stopped(shop, [1], **SMALL)
    for weights in shop.store.root.glob("unet-weights-*.safetensors"):
        weights.unlink()
    monkeypatch.setattr(diffusion, "train", lambda *_, **__: pytest.fail("trained"))
    again = painters.stopped(shop, [1], **SMALL)
    assert digests(again) == digests(first) and again[1].generator == first[1].generator
    assert painters.DIGEST.travels and not painters.WEIGHTS.travels
    denoising.check(again[1], [150])  # looks at the schedule, which is the base's
    assert not Path(again[1].generator).exists()


@pytest.mark.parametrize("steps", [[2, 1], [0], [1, 1], [4201]])
def test_steps_that_are_no_snapshots_are_refused(shop, steps):
    with pytest.raises(ValueError, match="rising numbers from 1 to 4200"):
        painters.stopped(shop, steps, **SMALL)


def test_noise_is_as_large_as_asked_and_spares_norms_and_biases(shop, mini):
    found = painters.damaged(shop, [0.3, 0.6])
    noisy, clean = weights_of(found[0.3]), weights_of(replace(mini))
    assert noisy.keys() == clean.keys() and len(set(digests(found))) == 2
    for name, weight in clean.items():
        added = (noisy[name] - weight).float()
        if weight.ndim == 1:
            assert not added.any()
        elif weight.numel() > 10_000:
            assert added.std() / weight.std() == pytest.approx(0.3, rel=0.05)


class Blind:
    """A referee that always sees a red dog most clearly, and a blue cat next."""

    labels = ("dog", "cat", "cup", "colour:red", "colour:blue", "colour:green")

    def logits(self, images):
        return np.tile([3.0, 2.0, 1.0, 3.0, 2.0, 1.0], (len(images), 1))


def test_right_is_what_the_likeliest_labels_say():
    images = np.zeros((3, 1))
    assert skill.right(Blind(), images, [["dog"], ["cat"], ["cup"]]).tolist() == [True, False, False]
    assert skill.right(Blind(), images, [["dog", "cat"], ["cat", "dog"], ["dog", "cup"]]).tolist() == [
        True,
        True,
        False,
    ]
    assert skill.right(Blind(), images, [["colour:red"], ["colour:blue"], ["colour:green"]]).tolist()[0]


def test_prompts_ask_for_every_thing_equally_often():
    texts, nouns, colours = skill.prompts(2 * len(scenes.CATEGORIES), 1, "0")
    assert sorted(sum(nouns, [])) == sorted(2 * list(scenes.CATEGORIES))
    assert all(f"{c[0]} {n[0]} on a" in text for text, n, c in zip(texts, nouns, colours, strict=True))


def test_skill_is_asked_once_and_needs_a_probe(shop, mini):
    fast = Workshop(replace(mini, num_inference_steps=1), shop.store, progress=False)
    found = skill.of_single_things(fast, 3)
    assert found.things.shape == found.colours.shape == (3,) and found.things.dtype == bool
    assert (skill.of_single_things(fast, 3).things == found.things).all() and shop.store.spent["skill"].made == 1
    with pytest.raises(ValueError, match="probe"):
        skill.of_single_things(Workshop(replace(mini, probe=None), shop.store), 3)

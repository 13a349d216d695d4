"""The web split: endless scenes of every category, kept clear of all validation and test scenes."""

from functools import cache

from dfl_utils.world import scenes, splits


@cache
def _held_out() -> frozenset:
    return splits.held_out()


def scene(index: int, stream: str = "web") -> scenes.Scene:
    """Scene `index` of a stream; a draw that equals a held-out scene is drawn again.

    Args:
        index: any non-negative integer.
        stream: "web" for the models that play, "probe" for the referee, so that the two share no draw by design.
    """
    drawn, again = scenes.sample(f"{stream}/{index}"), 0
    while (drawn.things, drawn.ground) in _held_out():
        again += 1
        drawn = scenes.sample(f"{stream}/{index}/{again}")
    return drawn

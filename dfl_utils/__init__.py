"""The package beneath the book. `rerank_captions` and `rerank_images` play its games with models and data of one's own,
`score_captions` and `evaluate_captions` score captions without drawing.

import dfl_utils

ranked = dfl_utils.rerank_captions(["dog.jpg"], [["a dog", "a brown dog on a hill"]], profile="paper")
ranked[0][0].caption, ranked[0][0].similarity, ranked[0][0].image_hat
"""

import os
from importlib import import_module

# Before any library is loaded: none of them tells its makers that it is used.
for _name, _value in {"HF_HUB_DISABLE_TELEMETRY": "1", "DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}.items():
    os.environ.setdefault(_name, _value)
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

# Loaded when they are asked for: `import dfl_utils` loads neither torch nor anything else. They are named in parts, so
# that a chapter depends on their module only if it imports that.
PUBLIC = {
    **dict.fromkeys(("rerank_captions", "rerank_images"), "game.rerank"),
    **dict.fromkeys(("score_captions", "evaluate_captions"), "game.caption_scores"),
}


def __getattr__(name: str):
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *PUBLIC})

"""What a page shows: the paper's numbers, tidy rows, tables, sentences and figures. Nothing is measured here.

`exhibits.answer` opens a chapter, `exhibits.say` and `exhibits.show` are what it calls, and `exhibits.save` ends it.
"""

from importlib import import_module

__all__ = ["answer", "beside_paper", "browse", "compare", "save", "say", "say_verdicts", "show"]


def __getattr__(name: str):
    # Loaded when asked for: a build whose pages are all there already draws nothing, and waits for no plotting.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.page"), name)

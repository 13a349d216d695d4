"""What the chapters' parameters may be: one table, looked at before anything runs."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from dfl_utils.build.chapter import Scalar
from dfl_utils.store import provenance
from dfl_utils.world.limits import Check, number, several, word
from dfl_utils.world.profile import PROFILES, RANGES, ROLES, WAYS, load, place


def anything(value: object) -> None:
    """For what the chapter reads itself, before any model works."""


COUNT, RATE = number(1), number(0, 1, above=True, below=True)
PROFILED = ("PROFILE", "CAPTIONER", "CAPTIONERS", "LONG_CAPTIONERS", "GENERATOR", "OTHER_GENERATOR")  # see `_profiled`
# By name, or by chapter and name where a name means different things. What begins with NUM_ is a count, from 1.
TABLE: dict[str, Check] = {
    **{name.upper(): check for name, check in RANGES.items()},
    **dict.fromkeys(PROFILED, anything),
    **dict.fromkeys(("SEED", "LAYOUT_SEED"), number(0, 2**32, below=True)),
    **dict.fromkeys(("BATCH_SIZE", "SNAPSHOT_BATCH", "MICRO_BATCHES", "PLANTED_STEPS", "LONG_STEPS"), COUNT),
    **dict.fromkeys(("NUM_CANDIDATES", "NUM_DRAWN_CANDIDATES", "NUM_POOL", "NUM_DRAWN", "NUM_COCO_DRAWN"), number(2)),
    "judge.NUM_CANDIDATES": number(3),  # of two there is no partial tau
    "own_pair.NUM_CANDIDATES": COUNT,
    **dict.fromkeys(("own_pair.NUM_IMAGES", "models.NUM_IMAGES"), number(2)),
    **dict.fromkeys(("finding_image.NUM_IMAGES", "finding_image.NUM_COCO_IMAGES"), number(4)),
    **dict.fromkeys(("SWEEP_LONG_STEPS", "PRICE"), number(0)),
    **dict.fromkeys(("LR", "LONG_LR"), RATE),
    **dict.fromkeys(("SWEEP_LRS", "RATES"), several(RATE, float)),
    "BETA": number(0, above=True),
    "without_captions.NUM_CANDIDATES": number(2),
    "GAIN_TOP_PS": several(RANGES["top_p"], float),
    "COLLAPSE_STEPS": several(COUNT, int),
    "ALTERNATING_STEPS": several(COUNT, int, least=0),
    "MEMORY_PAIRS": several(COUNT, int),
    "SNAPSHOTS": several(number(1, 4200), int),
    "headroom.SNAPSHOTS": several(number(1, 4200), int, least=0),
    "FEW_STEPS": COUNT,
    "FEWER_STEPS": several(COUNT, int, least=0),
    "NOISES": several(number(0, above=True), float, least=0),
    "GUIDANCES": several(number(0), float, least=0),
    "SKILL": number(0, 1),
    "STEP": number(0, 1000, below=True),
    "WAYS_TIMESTEPS": several(number(0, 1000, below=True), int),
    "TEMPERATURE": number(0, above=True),
    "SHARE": number(0, 1, above=True),
    "THRESHOLD": number(0, 1, below=True),
    "DECODER": word(("tiny", "vae")),
    "SPICE": word(("SPICE-like", "SPICE")),
    "WAY": word(WAYS),
    "DATASET": word(("nocaps", "coco")),
    "SPLIT": word(("in", "near", "out", "overall", "test")),
    **dict.fromkeys(("SIMILARITY", "JUDGE"), word(("clip", "dino", "efficientnet"))),
    "models.JUDGE": word(("clip", "sbert", "cider", "wmd")),
    "PICKS": several(word(("best", "random", "worst"))),
    **dict.fromkeys(("GPU", "EXHIBITS", "LEFT_OUT", "LEAVE_ONE_OUT"), anything),
}
# The first is part of the second.
PARTS = (
    ("NUM_DRAWN", "NUM_IMAGES"),
    ("NUM_TEXTS", "NUM_IMAGES"),
    ("NUM_DRAWN_CANDIDATES", "NUM_CANDIDATES"),
    ("NUM_COCO_DRAWN", "NUM_COCO_IMAGES"),
    ("MICRO_BATCHES", "BATCH_SIZE"),
    ("BATCH_SIZE", "NUM_TRAIN_IMAGES"),
    ("NUM_SELF_IMAGES", "NUM_TRAIN_IMAGES"),
    ("NUM_WAYS_IMAGES", "NUM_TRAIN_IMAGES"),
    ("LONG_CAPTIONERS", "CAPTIONERS"),
)


def find(chapter: str, name: str) -> Check | None:
    """What a parameter of a chapter may be; None where the table does not know it."""
    known = TABLE.get(f"{chapter}.{name}") or TABLE.get(name)
    return known or (COUNT if name.startswith("NUM_") else None)


def check(chapter: str, values: Mapping[str, Scalar], machine: bool = True) -> None:
    """ValueError or FileNotFoundError, in one sentence, of the first value that a chapter could not run with.

    Args:
        values: of its parameters, all or some.
        machine: whether the chapter is to run here: then its device and models are looked at, too.
    """
    for name, value in values.items():
        _say(chapter, name, value, find(chapter, name) or anything)
    for part, whole in PARTS:
        if part in values and whole in values:
            _say(chapter, part, values[part], _part_of(values[whole]))
    if "DATASET" in values:
        splits = ("test",) if values["DATASET"] == "coco" else ("in", "near", "out", "overall")
        _say(chapter, "SPLIT", values["SPLIT"], word(splits))
    if machine and "PROFILE" in values:
        _profiled(chapter, values)
    if machine and values.get("SPICE") == "SPICE":
        from dfl_utils.scores import spice  # it opens Java's door

        spice.require()


def _part_of(whole: Scalar) -> Check:
    """From one to so many, or some of such names."""
    return several(word(whole.split()), least=0) if isinstance(whole, str) else number(1, whole)


def _say(chapter: str, name: str, value: object, check: Check) -> None:
    try:
        check(value)
    except ValueError as error:
        raise ValueError(f"Parameter {name} of chapter {chapter} is {value!r}: {error}.") from error


def _profiled(chapter: str, values: Mapping[str, Scalar]) -> None:
    """The profile as the chapter will have it: its device and type, the names it knows, each model that is changed."""
    models = load(values["PROFILE"])
    if "GENERATOR" in values:  # a pair of one's own
        captioner, generator = (str(_path(values[name])) for name in ("CAPTIONER", "GENERATOR"))
        models = models.pair(captioner, generator)
    else:
        known = {"CAPTIONER": models.captioners, "CAPTIONERS": models.captioners, "OTHER_GENERATOR": models.generators}
        for name in values.keys() & known.keys():
            _say(chapter, name, values[name], several(word(known[name])))
            for model in values[name].split():
                models.pair(**{"generator" if name == "OTHER_GENERATOR" else "captioner": model})
    usual = PROFILES[models.name]
    named = {role: getattr(models, role) for role in ROLES}
    roles = [role for role, model in named.items() if model and not _same(model, getattr(usual, role))]
    if roles or any(getattr(models, name) != getattr(usual, name) for name in ("device", "dtype", "scheduler")):
        from dfl_utils.models import checkpoint, workshop  # torch takes seconds
        from dfl_utils.models import generator as generators

        checkpoint.inference_dtype(models)
        generators.scheduler_class(models.scheduler)
        for role in roles:
            folder = models.locate(str(_path(getattr(models, role))))
            for way in {models.way, values.get("WAY", models.way)}:
                if Path(folder).is_dir():  # others are of the hub, and not fetched
                    workshop.check(replace(models, **{role: folder}, way=way), role)


def _path(model: str) -> Path:
    """A model's folder as the chapter will find it, which runs in `book/`."""
    beside = provenance.ROOT / "book" / model
    return beside if beside.exists() and not place(model).exists() else place(model)


def _same(model: str, other: str | None) -> bool:
    return model == other or other is not None and _path(model).resolve() == _path(other).resolve()

"""What the finetuning's chapters ask of the models: trainings, and what is measured before and after them."""

from collections.abc import Iterable

from dfl_utils.build.workload import EMBEDDED, ROLES, Parameters, Training, Work, drawn, i2t2i, image_size, scored
from dfl_utils.training.losses import LOSSES
from dfl_utils.training.step_ways import ways

VALIDATION_BATCH = 8
CAPTION, TOLD, DREW, READ = LOSSES
# Setting of Tables 5 and 9 -> its losses, and what they move (Appendix H), as in the chapter `ablations`.
SETTINGS = {
    "all four": (LOSSES, ROLES),
    "ground truth": ((CAPTION,), ROLES[:1]),
    "reconstruction": ((TOLD,), ROLES),
    "reconstruction, generator frozen": ((TOLD,), ROLES[:1]),
    "ground truth + reconstruction": ((CAPTION, TOLD), ROLES),
    "ground truth + reconstruction, generator frozen": ((CAPTION, TOLD), ROLES[:1]),
    "augmentation": ((DREW, READ), ROLES),
    "generation": ((DREW,), ROLES[1:]),
    "text reconstruction": ((READ,), ROLES),
}
SAYS = [name for name in SETTINGS if name not in ("generation", "text reconstruction")]
DRAWS = ("all four", "text reconstruction", "generation")
WATCHED = ("all four", "ground truth", "reconstruction", "reconstruction, generator frozen")
NUM_WAYS, STEPS_A_WAY = len(ways()), 3  # of the chapter `cost`


def finetuning(p: Parameters) -> dict[str, list[Work]]:
    """Figure 6, the learning rates, Tables 3 and 4."""
    names, seeds = p["CAPTIONERS"].split(), range(p["NUM_SEEDS"])
    first = names[0]
    alone = _training(p, "generation")
    rates = [_held_out("start", p, first), _held_out("wrong captions", p, first)]
    sweep = [(float(lr), p["NUM_STEPS"]) for lr in p["SWEEP_LRS"].split()]
    for lr, steps in sweep + [(1e-4, p["SWEEP_LONG_STEPS"])] * bool(p["SWEEP_LONG_STEPS"]):
        rates += _trained("joint", {**p, "LR": lr}, _training(p), first, 1, steps)
        rates.append(_held_out(f"joint {lr:g} {steps} 0", p, first))
    joint = {name: _trained("joint", p, _training(p), name) for name in names}
    table3, table4 = sum(joint.values(), []), sum(joint.values(), _trained("SD MSE", p, alone, first))
    for name in names:
        table3.append(_held_out("start", p, name))
        table3 += [_held_out(f"joint {p['LR']:g} {p['NUM_STEPS']} {k}", p, name) for k in seeds]
    drawers = {name: [f"ours {k}" for k in seeds] for name in names}
    drawers[first] += ["SD", *(f"SD MSE {k}" for k in seeds)]
    sets = {"nocaps": (p["NUM_IMAGES"], p["NUM_DRAWN"]), "coco": (p["NUM_COCO_IMAGES"], p["NUM_COCO_DRAWN"])}
    for data, (images, count) in sets.items():
        for name in names:
            for of in ("start", *(f"ours {k}" for k in seeds)):
                table3 += _said(f"{data}, {of}", images, name, EMBEDDED)
            table4 += _shown(data, drawers[name], count, p, name)
    return {
        "figure6": [Work("anatomy", "", 1, model=first, size=image_size(p, first))],
        "sweep": rates,
        "table3": table3,
        "table4": table4,
    }


def ablations(p: Parameters) -> dict[str, list[Work]]:
    """Tables 5 and 9."""
    who, seeds, n = p["CAPTIONER"], range(p["NUM_SEEDS"]), p["NUM_IMAGES"]
    left_out = [f"without {name}" for name in LOSSES if p["LEAVE_ONE_OUT"]]

    def trained(names: Iterable[str]) -> list[Work]:
        return sum((_trained(name, p, _training(p, name), who) for name in dict.fromkeys(names)), [])

    def said(names: Iterable[str]) -> list[Work]:
        own = [f"{name} {k}" for name in names for k in seeds]
        return sum((_said(f"nocaps, {of}", n, who) for of in ("start", *own)), [])

    planted = _trained("swapped", p, _training(p, "ground truth"), who, steps=p["PLANTED_STEPS"])
    says = ["all four", "reconstruction", "ground truth", *left_out]
    draws = [*DRAWS, *left_out]
    table5 = trained([*says, *draws]) + said(says)
    table5 += _shown("nocaps", ["start", *(f"{name} {k}" for name in draws for k in seeds)], p["NUM_DRAWN"], p, who)
    table9 = trained(SAYS) + said(SAYS) + [_held_out("start", p, who)]
    table9 += [_held_out(f"{name} {k}", p, who) for name in WATCHED for k in seeds]
    for steps in sorted({*map(int, p["COLLAPSE_STEPS"].split())} - {p["NUM_STEPS"]}):
        table9 += _trained("reconstruction", p, _training(p, "reconstruction"), who, 1, steps)
        table9 += [*_said(f"nocaps, {steps} steps", n, who), _held_out(f"{steps} steps", p, who)]
    return {"sanity check": planted + said(["planted"]), "table5": table5, "table9": table9}


def cost(p: Parameters) -> dict[str, list[Work]]:
    """The trainings in three ways, and the steps that are measured and counted one by one."""
    who, seeds = p["CAPTIONER"], range(p["NUM_SEEDS"])
    found = {"exact": ("vae", 1.0), "ours": ("tiny", 1.0), "share": ("tiny", p["SHARE"])}
    of = ["start", *(f"{name} {k}" for name in found for k in seeds)]
    made = _shown("nocaps", of, p["NUM_DRAWN"], p, who)
    made += sum((_said(f"nocaps, {one}", p["NUM_IMAGES"], who) for one in of), [])
    for name, (decoder, share) in found.items():
        made += _trained(name, p, Training(decoder=decoder, share=share), who)
    tried = NUM_WAYS - len([way for way in p["LEFT_OUT"].split(",") if way.strip()])
    large = min(tried, p["NUM_LARGE_WAYS"])
    large -= large > 2  # the last ways but `threshold`, the third from the end: it costs what the way before it does
    measured = [Work("step-seconds", "", STEPS_A_WAY * tried, p["NUM_ROUNDS"]), Work("step-losses", "", tried)]
    measured += [Work("step-flops", "", STEPS_A_WAY, tried + large)]
    return {"cost": made, "step by step": measured}


def beyond(p: Parameters) -> dict[str, list[Work]]:
    """Self-training and Gumbel-softmax, which have no exhibit in the paper."""
    who, seeds, n = p["CAPTIONER"], range(p["NUM_SEEDS"]), p["NUM_IMAGES"]
    pair = (who, "stable-diffusion")
    of, each = p["NUM_SELF_IMAGES"], p["NUM_CANDIDATES"]
    made = i2t2i("coco train", of, each, p, f"p {p['TOP_P']:g}", pair=pair, judges=(p["JUDGE"],))
    joint = ("ours", "ours, gumbel")
    told = [f"{pick} caption" for pick in p["PICKS"].split()] + ["one human caption", "ground truth"]
    for name in (*joint, *told):
        made += _trained(name, p, _training(p, "all four" if name in joint else "ground truth"), who)
    own = [f"{name} {k}" for name in (*joint, *told) for k in seeds]
    made += sum((_said(f"nocaps, {of}", n, who) for of in ("start", *own)), [])
    made += _shown("nocaps", ["start", *(f"{name} {k}" for name in joint for k in seeds)], p["NUM_DRAWN"], p, who)
    return {"beyond": made}


def _training(p: Parameters, setting: str = "all four") -> Training:
    without = setting.removeprefix("without ")
    left = tuple(name for name in LOSSES if name != without), ROLES
    return Training(*SETTINGS.get(setting, left), p["DECODER"], p["SHARE"])


def _trained(of: str, p: Parameters, training: Training, captioner: str, seeds: int = 0, steps: int = 0) -> list[Work]:
    """Runs of one recipe, and the latents that they learn from; `NUM_SEEDS` and `NUM_STEPS` where 0."""
    steps, seeds = steps or p["NUM_STEPS"], seeds or p["NUM_SEEDS"]
    runs = [f"{of}, {captioner}, {steps} steps of {p['LR']:g}, seed {k}" for k in range(seeds)]
    size = image_size(p, captioner)
    made = [Work("latents", "coco train", p["NUM_TRAIN_IMAGES"], size=size)]
    return made + [Work("finetuning", run, steps, model=captioner, size=size, training=training) for run in runs]


def _said(of: str, images: int, captioner: str, encoders: Iterable[str] = ()) -> list[Work]:
    """What a captioner says of images by beam search, and its scores."""
    return [Work("descriptions", of, images, model=captioner), *scored(f"{of}, {captioner}", images, 1, encoders)]


def _shown(data: str, drawers: Iterable[str], count: int, p: Parameters, captioner: str) -> list[Work]:
    """What generators draw of references, one an image, and its features; they were trained beside a captioner."""
    made = [Work("original-features", data, count)]
    for of in (f"{data}, {captioner} {drawer}" for drawer in drawers):
        made += [*drawn(of, count, 1, p, (captioner, "stable-diffusion")), Work("features", of, count)]
    return made


def _held_out(of: str, p: Parameters, captioner: str) -> Work:
    """Validation losses, a batch a call."""
    batches, size = -(-p["NUM_VAL_IMAGES"] // VALIDATION_BATCH), image_size(p, captioner)
    return Work("validation-losses", of, batches, model=captioner, size=size)

"""What each exhibit of the book asks of the models: calls by kind, as functions of its chapter's parameters."""

from collections.abc import Callable
from itertools import product

from dfl_utils.build import chapter, training_work
from dfl_utils.build.workload import Parameters, Work, drawn, i2t2i, scored, t2i2t
from dfl_utils.exhibits import paper

TABLE_8 = (("blip-large", "stable-diffusion"), ("blip-large", "amused"), ("blip2", "stable-diffusion"))
TOP_PS = tuple(paper.table("table6").x)


def exhibits(name: str, scale: str | None = None, **replaced: object) -> dict[str, list[Work]]:
    """Exhibit -> its work, each as if nothing else had been made before, in the order of the chapter.

    Args:
        name: of a chapter in `CHAPTERS`.
        scale: of `params/`; the chapter's defaults, the published run, if None.
        replaced: parameters of the chapter.

    Raises:
        ValueError: no such chapter, scale or parameter.
    """
    if name not in CHAPTERS:
        raise ValueError(f"Nothing is counted for the chapter {name}; choose one of {', '.join(CHAPTERS)}.")
    source = chapter.find(name)
    values = (chapter.at_scale(source, scale) if scale else {}) | chapter.check(source, replaced)
    return CHAPTERS[name](chapter.effective(source, values))


def _finding_caption(p: Parameters) -> dict[str, list[Work]]:
    n, coco, each = (p[name] for name in ("NUM_IMAGES", "NUM_COCO_IMAGES", "NUM_CANDIDATES"))
    nocaps = i2t2i("nocaps", n, each, p) + scored("nocaps", n, each)
    return {
        "sanity check": drawn("nocaps, planted", n, 3, p),
        "figure3": nocaps,
        "table1": nocaps + i2t2i("coco", coco, each, p),
    }


def _baselines(p: Parameters) -> dict[str, list[Work]]:
    n, each = p["NUM_IMAGES"], p["NUM_CANDIDATES"]
    compared = i2t2i("nocaps", n, each, p) + scored("nocaps", n, each, ("clip-text",))
    compared += [Work("descriptions", "nocaps", n, model="blip-large"), *scored("beam", n, 1, ("clip-text",))]
    compared += [Work("clip-score", "sampled", n, each), Work("likelihood", "sampled", n, each, "blip-large")]
    planted = [Work("clip-score", "planted", n, 2), Work("likelihood", "planted", n, 2, "blip-large")]
    return {"sanity check": planted, "baselines": compared}


def _finding_image(p: Parameters) -> dict[str, list[Work]]:
    each, parts = p["NUM_CANDIDATES"], {"nocaps": p["NUM_IMAGES"], "coco": p["NUM_COCO_IMAGES"]}
    n = parts["nocaps"]
    planted = [*drawn("nocaps, planted", n, 3, p), Work("readings", "nocaps, planted", n, 3, "blip-large")]
    made = {"sanity check": planted + scored("planted", n, 3)}
    for part, images in parts.items():
        own = [*t2i2t(part, images, each, p), *scored(part, images, each)]
        own += [Work("features", part, images, each), Work("original-features", part, images)]
        made[{"nocaps": "figure4", "coco": "table2"}[part]] = own
    others = [Work("original-features", "nocaps, others", p["NUM_OTHERS"])]
    return made | {"table2": made["figure4"] + made["table2"] + others}


def _sampling(p: Parameters) -> dict[str, list[Work]]:
    n, each, few = p["NUM_IMAGES"], p["NUM_CANDIDATES"], p["NUM_SAMPLED_IMAGES"]
    said = [
        Work("captions", f"nocaps, sampled by blip-large at p {top_p:g}", n, each, "blip-large") for top_p in TOP_PS
    ]
    for top_p in map(float, str(p["GAIN_TOP_PS"]).split()):
        said += i2t2i("nocaps", few, each, p, f"p {top_p:g}")
    sets = {"nocaps": p["NUM_NOCAPS_IMAGES"], "coco": p["NUM_COCO_IMAGES"]}
    strict = [i2t2i(d, sets[d], each, p, how, judges=("clip",)) for d, how in product(sets, ("top k", "tempered"))]
    pool = p["NUM_POOL"]
    pools = i2t2i("nocaps", few, pool, p, f"p {p['TOP_P']:g}") + t2i2t("nocaps", few, pool, p)
    pools += scored("sampled", few, pool, ("sbert",)) + scored("read", few, pool)
    narrow = [Work("captions", f"narrow {k}", min(16, few), 1, "blip-large") for k in range(3)]
    return {"sanity check": narrow, "table6": said, "table7": sum(strict, []), "figure9": pools}


def _models(p: Parameters) -> dict[str, list[Work]]:
    n, each = p["NUM_IMAGES"], p["NUM_CANDIDATES"]
    planted = drawn("nocaps, planted", n, 2, p, ("blip-large", "amused"))
    planted += [Work("likelihood", "planted", n, 2, reader) for reader in ("blip-large", "blip2")]
    works = [work for pair in TABLE_8 for work in i2t2i("nocaps", n, each, p, pair=pair)]
    works += t2i2t("nocaps", n, each, p) + t2i2t("nocaps", n, each, p, "blip2")
    works += scored("read by blip-large", n, each) + scored("read by blip2", n, each)
    works += [Work("features", "nocaps", n, each), Work("original-features", "nocaps", n)]
    return {"sanity check": planted, "table8": works}


def _judge(p: Parameters) -> dict[str, list[Work]]:
    n, each, again = p["NUM_IMAGES"], p["NUM_CANDIDATES"], p["NUM_OTHER_IMAGES"]
    probe = p["PROFILE"] == "mini"  # the paper's world has none, and nothing is planted without

    def judged(of: str, images: int, count: int) -> list[Work]:
        labels = [Work("labels", of, images, count + 1)] if probe else []
        return [*labels, Work("clip-score", of, images, count)]

    planted = drawn("nocaps, planted", p["NUM_PLANTED"], 3, p) + judged("planted", p["NUM_PLANTED"], 3)
    own = i2t2i("nocaps", n, each, p) + judged("own", n, each) + scored("nocaps", n, each)
    other = drawn("nocaps, sampled", again, each, p, ("blip-large", p["OTHER_GENERATOR"])) + judged(
        "other", again, each
    )
    return ({"sanity check": planted} if probe else {}) | {"judge": own, "another generator": own + other}


def _tokenizer(p: Parameters) -> dict[str, list[Work]]:
    # Eight ways to tell a caption; equal prompts are drawn once, so this is the most that it can be.
    return {"appendix G": drawn("nocaps, mapped", p["NUM_IMAGES"], 8, p, judges=("clip",))}


CHAPTERS: dict[str, Callable[[Parameters], dict[str, list[Work]]]] = {
    "finding_caption": _finding_caption,
    "baselines": _baselines,
    "finding_image": _finding_image,
    "sampling": _sampling,
    "models": _models,
    "judge": _judge,
    "tokenizer": _tokenizer,
    "finetuning": training_work.finetuning,
    "ablations": training_work.ablations,
    "cost": training_work.cost,
    "beyond": training_work.beyond,
}

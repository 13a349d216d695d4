"""Scores of given captions, without drawing: of pairs of image and caption, and of a result file beside annotations."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np

from dfl_utils.game import denoising
from dfl_utils.game.rerank import Picture, check_list, check_lists, game_of, on_disk, warn_of_cut, warn_of_photographs
from dfl_utils.game.scorer import Scorer
from dfl_utils.scores import ngrams, spice
from dfl_utils.store.store import RunStore
from dfl_utils.world.annotations import HALF, Example, is_text, read_json
from dfl_utils.world.profile import Profile

# Score of a pair -> the model that gives it.
ROLES = {"CLIPScore": "clip", "likelihood": "captioner", "denoising": "generator"}
BLEU = {f"BLEU-{n}": n - 1 for n in range(1, 5)}
METRICS = ("CIDEr-D", "CIDEr", *BLEU, "ROUGE-L", "METEOR", "WMD", "SPICE-like", "SPICE")


def score_captions(
    images: Sequence[Picture],
    captions: Sequence[str] | Sequence[Sequence[str]],
    metrics: Sequence[str] = ("CLIPScore",),
    *,
    matrix: bool = False,
    profile: str | Profile = "mini",
    store: RunStore | Path | str | None = None,
) -> dict[str, np.ndarray | list[np.ndarray]]:
    """Score given captions of given images.

    Args:
        images: files or Pillow images.
        captions: one for each image, or a list for each, of any lengths from 1. With `matrix` a list of any number of
            texts, each of which is scored with every image.
        metrics: `CLIPScore` (Hessel et al., 2021), in [0, 2.5]: 2.5 max(cosine, 0) of image and caption behind the
            profile's prefix. `likelihood`: the captioner's log p(caption | image), nats, the mean over tokens.
            `denoising`: by how much the caption lowers the generator's loss on the image (`denoising.scores`,
            `unconditional`), a squared error of its latents; 0 where it tells nothing, negative where it misleads.
        profile, store: as in `rerank_captions`.

    Returns:
        Metric -> scores in the form of `captions`: (images,), or an array for each image; with `matrix`
        (images, texts).

    Raises:
        ValueError, TypeError, FileNotFoundError, OSError: an unknown metric, images or captions as in
            `rerank_captions`, a generator that has no such loss, a captioner that gives no likelihood. All but the last
            before any model works.
    """
    _check_metrics(metrics, ROLES)
    check_list("images", images, Picture)
    alone = matrix or (isinstance(captions, Sequence) and all(isinstance(text, str) for text in captions))
    if alone:
        check_list("captions", captions, str)
    else:
        check_lists("captions", captions, str, len(images))
    if not matrix and len(captions) != len(images):
        raise ValueError(f"captions has {len(captions)} entries for {len(images)} images: give one for each, or matrix="
                         "True for the scores of all images with all captions.")  # fmt: skip
    roles = [ROLES[metric] for metric in metrics]
    game = game_of(profile, roles, store)
    if "denoising" in metrics:
        denoising.check(game.profile, denoising.TIMESTEPS)
    examples = [on_disk(image, game.store) for image in images]
    warn_of_photographs(game.profile, roles, examples)
    for role, prefix in (("clip", game.profile.clip_score_prefix), ("generator", "")):
        if role in roles:
            texts = captions if alone else sum(map(list, captions), [])
            warn_of_cut(game.profile, [role], [prefix + text for text in texts])
    rows = [captions] * len(images) if matrix else [[row] if alone else row for row in captions]
    longest = max(map(len, rows))
    full = [[*row, *[row[0]] * (longest - len(row))] for row in rows]
    scorer = Scorer(game.profile, game.store, [Example(0, Path(), ("no reference weighs here",))])
    ask = {"CLIPScore": scorer.clip_score, "likelihood": game.log_likelihood}
    ask["denoising"] = partial(denoising.scores, game, unconditional=True)
    scores = {metric: np.asarray(ask[metric](examples, full), np.float64) for metric in metrics}
    if alone:
        return scores if matrix else {metric: values[:, 0] for metric, values in scores.items()}
    lengths = list(map(len, rows))
    return {metric: [v[:n] for v, n in zip(values, lengths, strict=True)] for metric, values in scores.items()}


def evaluate_captions(
    results: Path | str | Sequence[Mapping],
    annotations: Path | str | Mapping,
    metrics: Sequence[str] = METRICS[:-1],
    *,
    profile: str | Profile = "mini",
    store: RunStore | Path | str | None = None,
) -> dict[str, float]:
    """All scores of a COCO result file: of each image that it holds, one caption against the annotations' captions.

    Args:
        results: a file in COCO's result format, `[{"image_id": 1, "caption": "a dog"}, ...]`, or what is in it.
        annotations: a file in COCO's caption format (`annotations` of `image_id` and `caption`), or what is in it.
        metrics: some of `METRICS`; by default those that need no CoreNLP.
        profile: names the word vectors of WMD and how it reads words.
        store: a run store or its folder, which keeps scores; None: the usual one.

    Returns:
        Metric -> mean over images, x 100 but WMD in [0, 2] (lower is better, captions without a known word left out).
        BLEU and `METEOR` are of the corpus, as COCO prints them; `METEOR, mean` is the mean of the captions'. n-grams
        of CIDEr-D, which COCO calls CIDEr, and of CIDEr weigh by the images of the results.

    Raises:
        ValueError: an image twice, or without references; a blank caption; an unknown metric; another format.
        FileNotFoundError: a file; SPICE where CoreNLP is missing. All before any work.
    """
    _check_metrics(metrics, METRICS)
    if "SPICE" in metrics:
        spice.require()
    (said, name), (truth, source) = _said(results), _annotated(annotations)
    if bare := [image_id for image_id in said if not truth[image_id]]:
        raise ValueError(f"{name} has image_id {bare[0]}, which has no caption in {source}: give the annotations of "
                         "the same images.")  # fmt: skip
    game = game_of(profile, [], store)
    if "WMD" in metrics:
        from dfl_utils.scores.word_mover import word_vectors  # gensim takes seconds

        word_vectors((), game.profile.word_vectors)
    examples = [Example(image_id, Path(), tuple(truth[image_id])) for image_id in said]
    return _scores(Scorer(game.profile, game.store, examples), examples, list(said.values()), metrics)


def _scores(scorer: Scorer, examples, said: list[str], metrics: Sequence[str]) -> dict[str, float]:
    captions, references = [[text] for text in said], [list(example.references) for example in examples]
    one_each = {
        "CIDEr": lambda: ngrams.Cider(references).score(captions, plain=True),
        "ROUGE-L": lambda: ngrams.rouge_l(captions, references),
        "CIDEr-D": lambda: scorer.score(examples, captions, ["CIDEr"])["CIDEr"],
    }
    bleu = cache(lambda: ngrams.corpus_bleu(ngrams.bleu_statistics(captions, references).sum(axis=(0, 1))))
    found = {}
    for metric in metrics:
        if metric in BLEU:
            found[metric] = bleu()[BLEU[metric]]
        elif metric == "METEOR":
            found[metric], each = ngrams.meteor(said, references)
            found["METEOR, mean"] = each.mean()
        else:
            values = one_each[metric]() if metric in one_each else scorer.score(examples, captions, [metric])[metric]
            found[metric] = np.nan if np.isnan(values).all() else np.nanmean(values)
    return {metric: float(value) for metric, value in found.items()}


def _check_metrics(metrics: Sequence[str], known: Sequence[str]) -> None:
    unknown = [metric for metric in metrics if metric not in known]
    if isinstance(metrics, str) or unknown or not metrics:
        raise ValueError(f"metrics is {metrics!r}: give a list of some of {', '.join(known)}.")


# --- COCO's formats: what a file holds, or what is given in its place.


def _said(results: object) -> tuple[dict[int, str], str]:
    """image_id -> caption of a result file, and the file's name."""
    rows, name = _content(results, "results")
    texts = _captions(rows or None, name, 'COCO\'s result format: give a list of {"image_id": 1, "caption": "a dog"}')
    for image_id, (text, *others) in texts.items():
        if others or not text:
            fault = "twice: keep one caption" if others else "with an empty caption: write one, or leave the image out"
            raise ValueError(f"{name} has image_id {image_id} {fault}.")
    return {image_id: text for image_id, (text,) in texts.items()}, name


def _annotated(annotations: object) -> tuple[dict[int, list[str]], str]:
    """image_id -> references, blank ones left out, and the file's name."""
    content, name = _content(annotations, "annotations")
    rows = content.get("annotations") if isinstance(content, Mapping) else None
    form = 'COCO\'s caption format: give {"annotations": [{"image_id": 1, "caption": "a dog"}]}'
    truth = {image_id: list(filter(None, texts)) for image_id, texts in _captions(rows, name, form).items()}
    return defaultdict(list, truth), name


def _content(source: object, name: str) -> tuple[object, str]:
    if not isinstance(source, str | Path):
        return source, name
    if not Path(source).is_file():
        raise FileNotFoundError(f"{source} is missing: name a JSON file that is there.")
    return read_json(Path(source)), str(source)


def _captions(rows: object, name: str, form: str) -> dict[int, list[str]]:
    """image_id -> captions, single spaces between their words; ValueError for rows of another form."""
    found = defaultdict(list)
    try:
        for row in rows:
            found[_whole(row["image_id"])].append(" ".join(row["caption"].split()))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{name} is not in {form}.") from error
    for image_id, texts in found.items():
        if not all(map(is_text, texts)):
            raise ValueError(f"{name} has {HALF} in a caption of image_id {image_id}: write it anew.")
    return found


def _whole(image_id: object) -> int:
    """An image id as COCO's tools write it, also as text; ValueError for a fraction or no number."""
    if not float(image_id).is_integer():
        raise ValueError(f"{image_id} is no image id")
    return int(image_id)

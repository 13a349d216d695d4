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
FOUND = ("CIDEr-D", "CIDEr", *BLEU, "ROUGE-L", "METEOR", "WMD", "SPICE-like")  # where nothing else is brought
METRICS = (*FOUND, "SPICE", "CLIPScore")


def score_captions(
    images: Sequence[Picture],
    captions: Sequence[str] | Sequence[Sequence[str]],
    metrics: Sequence[str] = ("CLIPScore",),
    *,
    matrix: bool = False,
    profile: str | Profile = "mini",
    captioner: str | None = None,
    generator: str | None = None,
    store: RunStore | Path | str | None = None,
    progress: bool = False,
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
        profile, captioner, generator, store, progress: as in `rerank_captions`.

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
    game = game_of(profile, captioner, generator, None, store, progress, roles)
    if "denoising" in metrics:
        denoising.check(game.profile, denoising.TIMESTEPS)
    examples = [on_disk(image, game.store) for image in images]
    warn_of_photographs(game.profile, roles, examples)
    if "clip" in roles:
        _warn_of_cut(game.profile, captions if alone else sum(map(list, captions), []))
    if "generator" in roles:
        warn_of_cut(game.profile, ["generator"], captions if alone else sum(map(list, captions), []))
    rows = [captions] * len(images) if matrix else [[row] if alone else row for row in captions]
    longest = max(map(len, rows))
    full = [[*row, *[row[0]] * (longest - len(row))] for row in rows]
    scorer = Scorer(game.profile, game.store, [Example(0, Path(), ("no reference weighs here",))])
    ask = {"CLIPScore": scorer.clip_score, "likelihood": game.log_likelihood}
    ask["denoising"] = partial(denoising.scores, game, unconditional=True)
    found = {metric: np.asarray(ask[metric](examples, full), np.float64) for metric in metrics}
    if alone:
        return found if matrix else {metric: values[:, 0] for metric, values in found.items()}
    lengths = list(map(len, rows))
    return {metric: [v[:n] for v, n in zip(values, lengths, strict=True)] for metric, values in found.items()}


def evaluate_captions(
    results: Path | str | Sequence[Mapping],
    annotations: Path | str | Mapping,
    metrics: Sequence[str] | None = None,
    *,
    images: Path | str | Mapping[int, Picture] | None = None,
    profile: str | Profile = "mini",
    store: RunStore | Path | str | None = None,
) -> dict[str, float]:
    """All scores of a COCO result file: of each image that it holds, one caption against the annotations' captions.

    Args:
        results: a file in COCO's result format, `[{"image_id": 1, "caption": "a dog"}, ...]`, or what is in it.
        annotations: a file in COCO's caption format (`annotations` of `image_id` and `caption`), or what is in it.
        metrics: some of `METRICS`; default: those that need neither CoreNLP nor images, and CLIPScore with `images`.
        images: for CLIPScore: the folder of the files that the annotations' `images` name, or image_id -> image.
        profile: names CLIP, the word vectors of WMD and how it reads words.
        store: a run store or its folder, which keeps scores; None: the usual one.

    Returns:
        Metric -> mean over images, x 100 but WMD in [0, 2] (lower is better, captions without a known word left out)
        and CLIPScore in [0, 2.5]. BLEU and `METEOR` are of the corpus, as COCO prints them; `METEOR, mean` is the mean
        of the captions'. n-grams of CIDEr-D, which COCO calls CIDEr, and of CIDEr weigh by the images of the results.

    Raises:
        ValueError: an image twice, or without references; a blank caption; an unknown metric; another format.
        FileNotFoundError: a file or an image; SPICE where CoreNLP is missing. All before any work.
    """
    if metrics is None:
        metrics = (*FOUND, *(["CLIPScore"] if images is not None else []))
    _check_metrics(metrics, METRICS)
    if "CLIPScore" in metrics and images is None:
        raise ValueError("CLIPScore looks at images: give images, a folder or image_id -> image.")
    if "SPICE" in metrics:
        spice.require()
    said, truth, files = _said(results), *_annotated(annotations)
    bare = [image_id for image_id in said if not truth[image_id]]
    if bare:
        raise ValueError(f"{_name(results, 'results')} has image_id {bare[0]}, which has no caption in "
                         f"{_name(annotations, 'annotations')}: give the annotations of the same images.")  # fmt: skip
    roles = ["clip"] if "CLIPScore" in metrics else []
    game = game_of(profile, None, None, None, store, False, roles)
    if "WMD" in metrics:
        from dfl_utils.scores.word_mover import word_vectors  # gensim takes seconds

        word_vectors((), game.profile.word_vectors)
    shown = [on_disk(_image(image_id, images, files), game.store) for image_id in said if roles]
    warn_of_photographs(game.profile, roles, shown)
    if roles:
        _warn_of_cut(game.profile, list(said.values()))
    examples = [Example(image_id, Path(), tuple(truth[image_id])) for image_id in said]
    return _scores(Scorer(game.profile, game.store, examples), examples, shown, list(said.values()), metrics)


def _scores(scorer: Scorer, examples, shown, said: list[str], metrics: Sequence[str]) -> dict[str, float]:
    captions, references = [[text] for text in said], [list(example.references) for example in examples]
    one_each = {
        "CIDEr": lambda: ngrams.Cider(references).score(captions, plain=True),
        "ROUGE-L": lambda: ngrams.rouge_l(captions, references),
        "CLIPScore": lambda: scorer.clip_score(shown, captions),
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


def _warn_of_cut(models: Profile, captions: Sequence[str]) -> None:
    warn_of_cut(models, ["clip"], [models.clip_score_prefix + text for text in captions])


def _check_metrics(metrics: Sequence[str], known: Sequence[str]) -> None:
    unknown = [metric for metric in metrics if metric not in known]
    if isinstance(metrics, str) or unknown or not metrics:
        raise ValueError(f"metrics is {metrics!r}: give a list of some of {', '.join(known)}.")


def _name(source: object, what: str) -> str:
    return str(source) if isinstance(source, str | Path) else what


def _read(source: object) -> object:
    if not isinstance(source, str | Path):
        return source
    if not Path(source).is_file():
        raise FileNotFoundError(f"{source} is missing: name a JSON file that is there.")
    return read_json(Path(source))


def _whole(image_id: object) -> int:
    """An image id as COCO's tools write it, also as text; ValueError for a fraction or no number."""
    if isinstance(image_id, bool) or (isinstance(image_id, float) and not image_id.is_integer()):
        raise ValueError(f"{image_id} is no image id")
    return int(image_id)


def _said(results: object) -> dict[int, str]:
    """image_id -> caption of a result file."""
    name, rows, said = _name(results, "results"), _read(results), {}
    for row in rows if isinstance(rows, Sequence) and rows else [None]:
        try:
            image_id, text = _whole(row["image_id"]), row["caption"].strip()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f'{name} is not in COCO\'s result format: give a list of {{"image_id": 1, "caption": '
                             '"a dog"}.') from error  # fmt: skip
        if not text or image_id in said:
            fault = "twice: keep one caption" if text else "with an empty caption: write one, or leave the image out"
            raise ValueError(f"{name} has image_id {image_id} {fault}.")
        said[image_id] = text
    _refuse_halves(name, said)
    return said


def _refuse_halves(name: str, texts: Mapping[int, str]) -> None:
    broken = next((image_id for image_id, text in texts.items() if not is_text(text)), None)
    if broken is not None:
        raise ValueError(f"{name} has {HALF} in a caption of image_id {broken}: write it anew.")


def _annotated(annotations: object) -> tuple[dict[int, list[str]], dict[int, str]]:
    """image_id -> references, and -> file name, of annotations in COCO's format."""
    content, truth = _read(annotations), defaultdict(list)
    try:
        for row in content["annotations"]:
            if text := " ".join(row["caption"].split()):
                truth[_whole(row["image_id"])].append(text)
        files = {_whole(row["id"]): row["file_name"] for row in content.get("images", ()) if "file_name" in row}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f'{_name(annotations, "annotations")} is not in COCO\'s caption format: give {{"annotations": '
                         '[{"image_id": 1, "caption": "a dog"}]}.') from error  # fmt: skip
    _refuse_halves(_name(annotations, "annotations"), {image_id: " ".join(texts) for image_id, texts in truth.items()})
    return truth, files


def _image(image_id: int, images: object, files: dict[int, str]) -> Picture:
    names, folder = (images, Path()) if isinstance(images, Mapping) else (files, Path(images))
    if image_id not in names:
        raise ValueError(
            f"image_id {image_id} has no image: name its file in the annotations' images, or give image_id -> image."
        )
    return folder / names[image_id] if isinstance(names[image_id], str | Path) else names[image_id]

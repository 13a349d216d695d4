#!/usr/bin/env bash
# Guess, before it was run: safetensors has one canonical layout, so the same tensors with the same metadata are the same
# bytes, and the SHA-256 of a file names its weights.
# Seen (safetensors 0.8.0, Python 3.11, Linux): the tensors' part is the same each time, the header is not. Keys of
# `__metadata__` come in another order at every save, in one process too: with eight keys, twenty saves of one
# dictionary gave nineteen or twenty different files. With one key, as transformers writes ({"format": "pt"}), the bytes do stay the same.
# So a file's hash names the weights only where at most one metadata key is stored; else hash tensors and sorted metadata.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.2.6
"$folder/env/bin/python" - <<'PY'
import hashlib
import json

import numpy as np
import safetensors
from safetensors.numpy import save

tensors = {"weight": np.arange(12, dtype=np.float32).reshape(3, 4)}
eight, one = {letter: letter for letter in "abcdefgh"}, {"format": "pt"}


def parts(data):
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def digests(metadata):
    return {hashlib.sha256(save(tensors, metadata)).hexdigest() for _ in range(20)}


many, single = digests(eight), digests(one)
headers, bodies = zip(*(parts(save(tensors, eight)) for _ in range(20)), strict=True)
orders = {tuple(header["__metadata__"]) for header in headers}
print(f"safetensors {safetensors.__version__}: 20 saves of 8 metadata keys: {len(many)} different files, "
      f"{len(set(bodies))} different body, {len(orders)} orders of the keys; of 1 key: {len(single)} file")
assert len(many) > 10 and len(orders) > 10, "the header has become canonical"
assert len(set(bodies)) == 1 and len(single) == 1
PY

#!/usr/bin/env bash
# Guess, before it was run: diffusers' EMAModel averages weights with the decay that it is given, from the first step
# on, unless `use_ema_warmup` is set: 0.9999 lags 10,000 steps behind, 0.999 a thousand.
# Seen (diffusers 0.42.1, torch 2.14.1, Linux, CPU): unset, its default, the decay is held back, too, at n / (9 + n) for
# step n, and that is another average: over the last tenth of the training so far, however long it has been. Of a weight
# that rises evenly the average stands at 90 % after 10 steps as after 2,000. Until step 9n / (9 + n) reaches it, what
# is asked decides nothing: 0.999 and 0.9999 give the same bits up to step 8,991, 0.9999 and more up to 89,991.
# With the flag set the average lags more until about step 700 and less after it. Only `min_decay`, set to the decay,
# gives what was guessed; the first step copies the weights in any case.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check diffusers==0.42.1 torch==2.14.1 transformers==5.23.0
"$folder/env/bin/python" - <<'PY'
import diffusers
import torch
from diffusers.training_utils import EMAModel

STEPS = (10, 100, 500, 1000, 2000)
WAYS = {
    "0.9999": {"decay": 0.9999},
    "0.999": {"decay": 0.999},
    "0.9999, use_ema_warmup": {"decay": 0.9999, "use_ema_warmup": True},
    "0.9999, min_decay 0.9999": {"decay": 0.9999, "min_decay": 0.9999},
}


def averages(options):
    """The average of a weight that rises by 1 a step, as a part of it, after each of `STEPS`."""
    weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    average, seen = EMAModel([weight], **options), []
    for step in range(1, STEPS[-1] + 1):
        weight.data += 1.0
        average.step([weight])
        if step in STEPS:
            seen.append((average.shadow_params[0] / weight).item())
    return seen


print("diffusers", diffusers.__version__, "| the average after", ", ".join(map(str, STEPS)), "steps")
seen = {name: averages(options) for name, options in WAYS.items()}
for name, parts in seen.items():
    print(f"{name:26}", *(f"{100 * part:5.1f} %" for part in parts))
assert all(abs(part - 0.9) < 1e-3 for part in seen["0.9999"]) and seen["0.9999"] == seen["0.999"]
flagged, unset = seen["0.9999, use_ema_warmup"], seen["0.9999"]
assert flagged[2] < unset[2] and flagged[3] > unset[3]
assert all(part < 0.11 for part in seen["0.9999, min_decay 0.9999"])

held = EMAModel([torch.nn.Parameter(torch.zeros(1))], decay=0.999)
assert held.get_decay(8990) < 0.999 == held.get_decay(8992)
PY
echo "as seen"

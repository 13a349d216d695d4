#!/usr/bin/env bash
# One machine, every GPU of it (or so many processes of one CPU thread each), one chapter of the book:
#   cluster/torchrun.sh finding_caption --scale paper
#   PROCESSES=4 cluster/torchrun.sh finding_caption --scale full
# All that follows the chapter's name goes to `dfl run`. The same command goes on where a killed one was.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ $# -eq 0 ]; then
  echo "cluster/torchrun.sh: name a chapter, as 'dfl chapters' lists them" >&2
  exit 2
fi
if command -v nvidia-smi >/dev/null; then gpus=$(nvidia-smi --list-gpus | wc -l); else gpus=0; fi
PROCESSES=${PROCESSES:-$((gpus > 0 ? gpus : $(nproc)))}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(($(nproc) > PROCESSES && gpus > 0 ? $(nproc) / PROCESSES : 1))}

exec "${PYTHON:-.venv/bin/python}" -m torch.distributed.run \
  --standalone --nproc_per_node "$PROCESSES" --max_restarts "${RESTARTS:-3}" \
  -m dfl_utils.build.cli run "$@"

#!/usr/bin/env bash
# Figures of a machine with a GPU: benches with their rows as JSON, in the folder given (default gpu-figures).
#   make install TORCH= && cluster/gpu_checks.sh [FOLDER [KIND…]]
# PYTHON names another interpreter that has tubelet; without KINDs every bench runs.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
out=${1:-gpu-figures}
shift || true
[ $# -gt 0 ] || set -- model train pipeline label decode
mkdir -p "$out"
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv | tee "$out/device.csv"
"$python" -c 'import torch; print(torch.__version__, torch.version.cuda); assert torch.cuda.is_available()'
for kind in "$@"; do
  "$python" -m tubelet_jobs bench "$kind" --json "$out/$kind.jsonl" | tee "$out/$kind.txt"
done

#!/usr/bin/env bash
# Figures of a machine with a GPU: every bench with its rows as JSON, in the folder given (default gpu-figures).
#   make install TORCH= && cluster/gpu_checks.sh
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-gpu-figures}
mkdir -p "$out"
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv | tee "$out/device.csv"
.venv/bin/python -c 'import torch; print(torch.__version__, torch.version.cuda); assert torch.cuda.is_available()'
for kind in model train pipeline label decode; do
  .venv/bin/tubelet bench "$kind" --json "$out/$kind.jsonl" | tee "$out/$kind.txt"
done

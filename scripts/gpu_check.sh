#!/usr/bin/env bash
# Measures and checks on a machine with a GPU what cannot be without one, in at most 9 minutes:
#
#     bash scripts/gpu_check.sh [FOLDER]      # gpu_check.md and gpu_check.json are written there; unset: here
#
# Exit code 0: all is as it should be; 1: something is not, the report says what; 2: there is no GPU.
set -euo pipefail
folder=$(realpath "${1:-.}")
cd "$(dirname "$0")/.."
exec python -m scripts.bench.gpu_check "$folder"

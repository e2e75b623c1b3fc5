#!/usr/bin/env bash
# Checks everything: style (ruff), types (mypy) and behaviour (pytest). Further arguments go to pytest.
#
#   bash scripts/test.sh                      all of it, under ten minutes on 2 cores
#   bash scripts/test.sh tests/test_run.py    one file
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" requirements-dev.txt

if ! command -v ffmpeg > /dev/null; then
    echo "== Installing ffmpeg, which the tests of data_prep need"
    if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
        echo "error: ffmpeg is missing; install it, on Debian and Ubuntu: sudo apt-get install ffmpeg" >&2
        exit 2
    fi
    apt-get update -qq && apt-get install -y -qq ffmpeg > /dev/null
fi

echo "== ruff"
ruff check .
ruff format --check .
echo "== mypy"
mypy
echo "== pytest"
# Two processes of one thread each beat one of two: most tests are small.
OMP_NUM_THREADS=1 exec pytest -n 2 "$@"

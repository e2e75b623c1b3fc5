#!/usr/bin/env bash
# From nothing to an accuracy in minutes: draws the demo set, trains and tests methods on it, and compares them.
#
#   bash scripts/quickstart.sh               everything goes to demo/ and runs/quickstart/ in the project's folder
#   bash scripts/quickstart.sh tsn trx pal   methods of your choice
#
# A second call resumes where the first was stopped, and repeats nothing that is finished.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" requirements.txt

methods=("$@")
[ $# -gt 0 ] || methods=(tsn otam trx dual_prototypes)

echo "== Drawing the demo set: 44 made-up actions in pairs that only the order of frames tells apart"
mkdir -p runs/quickstart
python data_prep/make_demo_set.py demo --picture runs/quickstart/classes.png

# A network this small keeps one core busy, so methods are trained side by side.
cores=$(getconf _NPROCESSORS_ONLN)
at_once=$((${#methods[@]} < cores ? ${#methods[@]} : cores))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores / at_once))}

train() { # trains and tests a method; its lines begin with its name
    local run=runs/quickstart/$1
    local asked=(--method "$1" @scripts/quickstart.args)
    [ ! -e "$run/args.json" ] || asked=(-r)
    python run.py -c "$run" "${asked[@]}" 2>&1 | (
        trap "" INT # what is said of a stop is shown as well
        while IFS= read -r line; do echo "$1: $line"; done
    )
}
export -f train

echo "== Training and testing ${methods[*]}, $at_once at a time"
printf '%s\n' "${methods[@]}" | xargs -P "$at_once" -I METHOD bash -o pipefail -c "train METHOD" || exit 2

echo "== Results on the same 1,000 test episodes of classes that no method was trained on (chance: 20 %)"
runs=("${methods[@]/#/runs/quickstart/}")
python scripts/compare.py "${runs[@]}" --out runs/quickstart/comparison
python scripts/plot_log.py "${runs[@]}" -o runs/quickstart/training.png
echo
echo "The classes:          runs/quickstart/classes.png"
echo "Each run's report:    runs/quickstart/METHOD/report.html"
echo "Training curves:      runs/quickstart/training.png, or: .venv/bin/tensorboard --logdir runs/quickstart"

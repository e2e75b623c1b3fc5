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

runs=()
for method in "${methods[@]}"; do
    run=runs/quickstart/$method
    runs+=("$run")
    echo "== Training and testing $method"
    if [ -e "$run/args.json" ]; then
        python run.py -c "$run" -r
    else
        python run.py -c "$run" --method "$method" @scripts/quickstart.args
    fi
done

echo "== Results on the same 1,000 test episodes of classes that no method was trained on (chance: 20 %)"
python scripts/compare.py "${runs[@]}" --out runs/quickstart/comparison
python scripts/plot_log.py "${runs[@]}" -o runs/quickstart/training.png
echo
echo "The classes:          runs/quickstart/classes.png"
echo "Each run's report:    runs/quickstart/METHOD/report.html"
echo "Training curves:      runs/quickstart/training.png, or: .venv/bin/tensorboard --logdir runs/quickstart"

#!/usr/bin/env bash
# A training of several machines under SLURM, one process for each GPU. It survives preemption, a time limit and a lost
# process: each start resumes from the last checkpoint. The run folder and the data must be on disks that all machines see.
#
#   sbatch --nodes=2 --gpus-per-node=4 scripts/slurm.sh -c /shared/runs/trx --dataset /shared/data/ssv2 --method trx
#
# Arguments are those of run.py; PROGRAM=run_supervised.py starts the other program, LAUNCH="python -m torch.distributed.run"
# is for a Python that is not on the path as torchrun.
#SBATCH --job-name=few-shot
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
#SBATCH --signal=TERM@180
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/..}"

first_host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
processes=${SLURM_GPUS_ON_NODE:-1}

# The signal that --signal asks for reaches the processes through srun; with its exit code for it the job asks to be
# queued again, and that start resumes where this one saved.
code=0
srun --kill-on-bad-exit=1 ${LAUNCH:-torchrun} \
    --nnodes="$SLURM_JOB_NUM_NODES" --nproc_per_node="$processes" --max-restarts=3 \
    --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$first_host:${MASTER_PORT:-29500}" \
    "${PROGRAM:-run.py}" "$@" -r || code=$?
if [ "$code" != 0 ] && [ "$code" != 2 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 100 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"

#!/bin/bash
# Training on one or many machines under SLURM. Preempted or about to run out of time, it saves a checkpoint and
# queues itself again; the run goes on from there.
#   sbatch --nodes 4 recipes/launch/slurm.sh RECIPE [KEY=VALUE …]
#   LAUNCH_CONFIG=recipes/launch/ddp.yaml sbatch --nodes 1 recipes/launch/slurm.sh RECIPE
# Before that, once: tokkata run RECIPE --stages tokenize. All machines must see the same folders. Adapt the
# lines below, and what your cluster needs (partition, account, modules, an environment to activate).
#SBATCH --job-name=tokkata
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:TERM@300
set -euo pipefail

if [[ $# -eq 0 ]]; then
    echo "usage: sbatch slurm.sh RECIPE [KEY=VALUE …]" >&2
    exit 2
fi
export RECIPE=$1
shift
export LAUNCH_CONFIG=${LAUNCH_CONFIG:-recipes/launch/fsdp.yaml}
mapfile -t machines < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MASTER=${machines[0]}
export PORT=$((20000 + SLURM_JOB_ID % 20000))
export NUM_PROCESSES=$((SLURM_NNODES * SLURM_GPUS_ON_NODE))

# SLURM signals this script alone: the processes that train get the signal from here.
stopping=
trap 'stopping=yes; scancel --signal=TERM "$SLURM_JOB_ID"' TERM

# shellcheck disable=SC2016  # each machine fills in its own number
srun --kill-on-bad-exit=1 bash -c '
    exec tokkata run "$RECIPE" "$@" --stages train --launcher "accelerate launch \
        --config_file $LAUNCH_CONFIG --num_machines $SLURM_NNODES --num_processes $NUM_PROCESSES \
        --machine_rank $SLURM_NODEID --main_process_ip $MASTER --main_process_port $PORT"
' tokkata "$@" &
training=$!

status=0
wait "$training" || status=$?
if [[ $stopping ]]; then # a signal ends the first wait
    status=0
    wait "$training" || status=$?
    if [[ $status -ne 0 ]]; then
        scontrol requeue "$SLURM_JOB_ID"
    fi
fi
exit "$status"

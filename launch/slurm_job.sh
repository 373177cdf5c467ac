#!/usr/bin/env bash
# The batch script of slurm.sh; it may also be submitted by itself:
#
#   sbatch --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=12 \
#       launch/slurm_job.sh --config=places512 --workdir=/shared/run
#
# One process per GPU: JAX gives the process with SLURM_LOCALID=n its node's GPU n, and
# finds the others by SLURM_JOB_ID, SLURM_STEP_NODELIST, SLURM_NTASKS and SLURM_PROCID.
# Do not use --gpus-per-task, which hides the other GPUs and changes their numbers.
#
# Two minutes before the time limit, and when the job is preempted, Slurm sends SIGTERM
# to the processes; they save and exit with 0. A job that has not finished is requeued.
#SBATCH --job-name=migan_jax
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=migan_jax-%j.log
set -euo pipefail
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # which srun does not take from the job
output=$(mktemp)
trap 'rm -f "$output"' EXIT
srun --kill-on-bad-exit=1 python -m migan_jax.train "$@" | tee "$output"
# The status is 0 in both cases, but only a run that has finished says so.
grep -q "^finished " "$output" || scontrol requeue "$SLURM_JOB_ID"

#!/usr/bin/env bash
# Train on the GPUs of a Slurm cluster.
#
#   launch/slurm.sh --nodes=2 --gpus=8 --cpus=12 --time=12:00:00 --partition=gpu -- \
#       --config=places512 --workdir=/shared/places512
#
# Each node has --gpus processes with a GPU and --cpus cores. The words after -- are
# arguments of `python -m migan_jax.train`; all nodes must see the workdir. Install the
# package (extra cuda12 or cuda13) into an environment that all nodes see; activate it
# first: the job inherits it. slurm_job.sh says how it is stopped and requeued.
#
#   --time, --partition, --account   as for sbatch
#   --dry-run                        print the command instead; --help prints this
set -euo pipefail
source "$(dirname "$0")/common.sh"
parse "nodes gpus cpus time partition account" "" "$@"
((${#arguments[@]} && !${#positional[@]})) || die "Give train's arguments after --."
for count in nodes gpus cpus; do
  [[ ${!count} =~ ^[1-9][0-9]*$ ]] || die "Give --$count=N, a whole number."
done
call sbatch --nodes="$nodes" --ntasks-per-node="$gpus" --gpus-per-node="$gpus" \
  --cpus-per-task="$cpus" ${time:+--time="$time"} \
  ${partition:+--partition="$partition"} ${account:+--account="$account"} \
  "$here/slurm_job.sh" "${arguments[@]}"

#!/usr/bin/env bash
# Train with several processes on this machine.
#
#   launch/local.sh --processes=2 -- --config=scenes64 --workdir=runs/a
#
# The words after -- are arguments of `python -m migan_jax.train`. Each line of output
# begins with the index of its process. SIGTERM and Ctrl-C are forwarded: the processes
# save, and the status is 0. When a process dies, the launcher names it, stops the
# others, and exits with status 1; the same command resumes. On GPUs, one process uses
# all of a machine, and needs no launcher.
#
#   --timeout=60   seconds that processes may take to stop before they are killed
#   --port=N       of the coordinator (default: a free one)
#   --dry-run      print the commands instead; --help prints this
# PYTHON names the interpreter (default: python).
set -euo pipefail
source "$(dirname "$0")/common.sh"
parse "processes timeout port" "" "$@"
((${#arguments[@]} && !${#positional[@]})) || die "Give train's arguments after --."
[[ $processes =~ ^[1-9][0-9]*$ ]] || die "Give --processes=N, a whole number."
[[ ${timeout:=60} =~ ^[0-9]+$ ]] || die "Give --timeout=SECONDS, a whole number."
python=${PYTHON:-python} pids=() groups=() deadline='' failed=''
free="import socket; s = socket.socket(); s.bind(('', 0)); print(s.getsockname()[1])"
[[ $port ]] || port=$("$python" -c "$free")

stop() { # ask the remaining processes to save and exit
  : "${deadline:=$((SECONDS + timeout))}"
  kill -TERM "${pids[@]}" || true
}
trap stop TERM INT
set -m # puts each process in a group, so that Ctrl-C in a terminal reaches only us
for ((i = 0; i < processes; i++)); do
  command=("$python" -m migan_jax.train --coordinator="localhost:$port"
    --processes="$processes" --process-id="$i" "${arguments[@]}")
  if [[ $dry_run ]]; then quote "${command[@]}" && continue; fi
  "${command[@]}" > >(while IFS= read -r line; do echo "[$i] $line"; done) 2>&1 &
  pids[i]=$! groups[i]=-$!
done
set +m
exec 3>&2 2>/dev/null # the shell's own messages about jobs
while ((${#pids[@]})); do
  worst=0 && sleep 0.1 || true # Ctrl-C ends the sleep
  for i in "${!pids[@]}"; do
    if kill -0 "${pids[i]}"; then continue; fi
    status=0 && wait "${pids[i]}" || status=$?
    unset "pids[i]"
    if ((status > worst)); then worst=$status culprit="process $i"; fi # a signal first
  done
  if ((worst)) && [[ ! $failed ]]; then
    failed="$culprit ended with status $worst"
    ((worst < 129)) || failed="$culprit was killed by SIG$(kill -l "$worst")"
    echo "error: $failed" >&3 && stop
  elif [[ $deadline ]] && ((${#pids[@]} && SECONDS >= deadline)); then
    echo "error: process ${!pids[*]} did not stop in $timeout s: killed" >&3 && failed=1
    kill -KILL -- "${groups[@]}" || true
  fi
done # then print what is left, and end loaders whose parent was killed
for _ in {1..10}; do ! kill -0 -- "${groups[@]}" || sleep 0.1; done
kill -KILL -- "${groups[@]}" || true
[[ ! $failed ]]

#!/usr/bin/env bash
# Train on a slice of TPU VMs, requested as a queued resource.
#
#   launch/tpu_vm.sh babysit --name=pod --zone=us-west4-a --type=v5litepod-16 --spot \
#       --wheel=dist/migan_jax-0.1.0-py3-none-any.whl -- \
#       --config=places256 --workdir=gs://my-bucket/places256
#
# create   request the slice (--type; --spot: cheaper, but may be preempted)
# setup    install the package on every host, from --wheel=FILE or the url in setup.cfg
#          at --commit (default: HEAD); then --prepare='COMMAND' there, to get the data
# run      start training on every host, unless it is running; train's arguments follow
#          --, with a --workdir that all hosts share
# watch    print the slice's state, then follow the log
# babysit  create, setup, run, and start over after a preemption or a crash, until
#          training has finished; then delete. It looks every POLL_SECONDS (60).
# delete   delete the slice
# --project defaults to gcloud's. --dry-run prints the commands, --help prints this.
set -euo pipefail
source "$(dirname "$0")/common.sh" && source "$here/tpu_slice.sh"
parse "name zone type project wheel commit prepare" "spot" "$@"
action=${positional[*]} before='' failures=0 errors=0

attempt() { # what fails is repeated at the next look, but not for ever
  "$@" || ((++failures < 5)) || die "Five attempts failed. The slice is still there."
}
begin() { setup && run; }

look() { # do what the slice's state asks for; fail when training has finished
  local now && now=$(state)
  [[ $now != READY ]] || now="READY $(status)"
  [[ $now == "$before" ]] || echo "$now" && before=$now
  [[ $now == *ERROR:* ]] || errors=0
  case $now in
    absent) attempt create ;;
    SUSPENDED | PREEMPTED | TERMINATED | STOPPED) delete || true ;;
    FAILED) attempt false && delete || true ;;
    *ERROR:*) ((++errors < 5)) || die "gcloud does not say what the slice does." ;;
    "READY 0") return 1 ;;
    READY*running* | READY*unknown*) ;;
    "READY " | "READY idle" | READY*143*) attempt begin ;; # new, or saved and stopped
    READY*) # crashed
      every_host "tail -n 5 train.log" || true
      attempt false && attempt begin
      ;;
  esac
}

check "$action"
case $action in
  create | setup | run | watch | delete) "$action" ;;
  babysit)
    if [[ $dry_run ]]; then # a run without incidents
      describe queued-resources state.state && create && describe tpu-vm state
      status && begin && delete && exit
    fi
    while look; do sleep "${POLL_SECONDS:-60}"; done
    delete
    ;;
  *) die "Give create, setup, run, watch, babysit or delete; see --help." ;;
esac

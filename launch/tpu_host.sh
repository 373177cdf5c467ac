#!/usr/bin/env bash
# What tpu_vm.sh does on each TPU host; it copies this file there and calls it.
#
#   bash tpu_host.sh setup './migan_jax-0.1.0-py3-none-any.whl[tpu,gcs]'
#
# setup REQUIREMENT    install the package into ~/migan_jax
# start ARGUMENTS      start training, unless it is running
# status               print "running", the status that training ended with, or "idle"
# log                  follow train.log
#
# Training is a unit of systemd: it survives the connection, and a machine that shuts
# down sends it SIGTERM and waits for it to save.
set -euo pipefail
[[ ${1:-} != --help ]] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" && exit; }
cd # the home folder

case ${1:-} in
  setup)
    # The image's own Python is older than 3.11.
    python3 -m pip install --user --quiet uv
    python3 -m uv venv --quiet --allow-existing --python=3.11 migan_jax
    python3 -m uv pip install --quiet --python=migan_jax/bin/python \
      --reinstall-package=migan_jax "$2"
    ;;
  start)
    if systemctl is-active --quiet migan_jax; then echo "running already" && exit; fi
    rm -f train.status
    sudo systemd-run --quiet --unit=migan_jax --collect --uid="$(id -u)" \
      --working-directory="$HOME" --property=KillMode=mixed \
      --property=TimeoutStopSec=300 bash "$HOME/tpu_host.sh" train "${@:2}"
    ;;
  train) # the unit
    exec >>train.log 2>&1
    stop() { # train exits with 0 after it has saved, but is not finished
      kill -TERM "$child"
      wait "$child" || true
      echo 143 >train.status && exit
    }
    migan_jax/bin/python -m migan_jax.train "${@:2}" &
    child=$! status=0
    trap stop TERM
    wait "$child" || status=$?
    echo "$status" >train.status
    ;;
  status)
    if systemctl is-active --quiet migan_jax; then echo running && exit; fi
    if [[ -f train.status ]]; then cat train.status; else echo idle; fi
    ;;
  log) touch train.log && exec tail -n 20 -F train.log ;;
  *) echo "error: Give setup, start, status or log; see --help." >&2 && exit 2 ;;
esac

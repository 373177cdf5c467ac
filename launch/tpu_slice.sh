# Sourced by tpu_vm.sh: what it does to a slice and sees of it. A queued resource and
# its slice share $name. `set -e` has no effect inside conditions, hence && and ||.
tpus() { call gcloud compute tpus "$@" "${where[@]}"; }
every_host() { tpus tpu-vm ssh "$name" --worker=all --command="$1"; }

check() { # what ACTION needs, before anything is done
  need name zone && where=(--zone="$zone" ${project:+--project="$project"})
  case $1 in create | babysit)
    case $type in
      v4-*) runtime=tpu-ubuntu2204-base ;;
      v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
      v5p-*) runtime=v2-alpha-tpuv5 ;;
      v6e-*) runtime=v2-alpha-tpuv6e ;;
      *) die "Give --type=v4-N, v5litepod-N, v5p-N or v6e-N." ;;
    esac ;;
  esac
  case $1 in setup | babysit) package=$(requirement tpu,gcs) ;; esac
  case $1 in run | babysit)
    ((${#arguments[@]})) || die "Give train's arguments after --." ;;
  esac
}

create() { # unless it exists
  tpus queued-resources create "$name" --node-id="$name" --accelerator-type="$type" \
    --runtime-version="$runtime" ${spot:+--spot} || [[ $(state) =~ ^[A-Z_]+$ ]]
}

delete() { # unless it is gone
  tpus queued-resources delete "$name" --force --quiet || [[ $(state) == absent ]]
}

setup() {
  tpus tpu-vm scp "$here/tpu_host.sh" ${wheel:+"$wheel"} "$name:" --worker=all &&
    every_host "bash tpu_host.sh setup $(quote "$package")" &&
    if [[ $prepare ]]; then every_host "$prepare"; fi
}

run() { every_host "bash tpu_host.sh start $(quote "${arguments[@]}")"; }

watch() { # all hosts: process 0, which writes the log, need not be that of worker 0
  state && every_host "bash tpu_host.sh log"
}

describe() { # print a state, "absent", or gcloud's error
  local seen
  seen=$(tpus "$1" describe "$name" --format="value($2)" --verbosity=error 2>&1) ||
    [[ $seen != *NOT_FOUND* ]] || seen=absent
  echo "$seen"
}

state() { # of the queued resource or, once that is ACTIVE, of its slice
  local seen && seen=$(describe queued-resources state.state)
  if [[ $seen == ACTIVE ]]; then describe tpu-vm state; else echo "$seen"; fi
}

status() { # what the hosts report of training, without repetitions
  local seen
  seen=$(every_host "test ! -f tpu_host.sh || bash tpu_host.sh status") || seen=unknown
  sort -u <<<"$seen" | paste -sd' ' -
}

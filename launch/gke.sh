#!/usr/bin/env bash
# Train on a slice of TPUs in GKE, as the JobSet in jobset.yaml.
#
#   launch/gke.sh apply --name=places --image=gcr.io/my-project/migan_jax:1 \
#       --accelerator=tpu-v5-lite-podslice --topology=4x4 --hosts=4 --chips=4 \
#       --queue=multislice-queue --bucket=my-bucket -- \
#       --config=places256 --workdir=gs://my-bucket/places256 \
#       --config.data.source=/data/datasets/places256
#
# apply    start the run, or leave it running: --hosts pods with --chips TPUs each
# watch    print the state, then follow the log
# delete   delete the run; each pod has 300 seconds to save
#
# The bucket is mounted at /data, for reading. --account names the Kubernetes service
# account that may use it (default: default). The cluster needs JobSet, Kueue, and the
# driver of gcsfuse. --dry-run prints the commands; --help prints this. With xpk:
#
#   xpk workload create --cluster=CLUSTER --workload=places --tpu-type=v5litepod-16 \
#       --docker-image=IMAGE --max-restarts=100 --termination-grace-period-seconds=300 \
#       --command="python -m migan_jax.train --config=places256 --workdir=gs://..."
set -euo pipefail
source "$(dirname "$0")/common.sh"
parse "name image accelerator topology hosts chips queue bucket account" "" "$@"
need name
first=batch.kubernetes.io/job-completion-index=0 # the pod of process 0

manifest() { # jobset.yaml, filled in; arguments become JSON, which YAML includes
  local text word list='' key
  text=$(cat "$here/jobset.yaml")
  for word in "${arguments[@]}"; do
    word=${word//\\/\\\\} && list+="${list:+, }\"${word//\"/\\\"}\""
  done
  for key in name image accelerator topology hosts chips queue bucket account; do
    text=${text//"__${key^^}__"/"${!key}"}
  done
  echo "${text//__ARGUMENTS__/"$list"}"
}

case ${positional[*]} in
  apply)
    need image accelerator topology hosts chips queue bucket
    ((${#arguments[@]})) || die "Give train's arguments after --."
    account=${account:-default}
    if [[ $dry_run ]]; then
      printf "kubectl apply --filename=- <<'END'\n%s\nEND\n" "$(manifest)"
    else
      manifest | kubectl apply --filename=-
    fi
    ;;
  watch)
    call kubectl get jobset "$name"
    call kubectl logs --follow --tail=20 --max-log-requests=1 --container=train \
      --selector="jobset.sigs.k8s.io/jobset-name=$name,$first"
    ;;
  delete) call kubectl delete jobset "$name" --ignore-not-found ;;
  *) die "Give apply, watch or delete; see --help." ;;
esac

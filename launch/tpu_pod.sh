#!/usr/bin/env bash
# Runs one command on all workers of an existing TPU pod slice; it creates and deletes nothing.
# The project must stand in the same folder on every worker (PROJECT, below $HOME), with its .venv: run once
#   launch/tpu_pod.sh NAME ZONE -- 'python3 -m venv .venv && .venv/bin/pip install -r requirements.txt "jax[tpu]==0.10.2"'
# Usage: launch/tpu_pod.sh NAME ZONE --config=FILE --workdir=SHARED_FOLDER [FLAGS of binarydm_jax.main]
#        launch/tpu_pod.sh NAME ZONE -- 'any shell command'
# The workdir must be a folder that all workers see, such as a mounted Filestore (gs://... is not one; of a bucket mounted
# by gcsfuse folders cannot be renamed unless it is hierarchical, and so no checkpoint written). A worker that is preempted
# ends with code 75 when all is saved; run the command again when the slice is back. Start this where the connection
# lasts, such as in tmux on a machine of the same zone: workers whose output nobody takes end.
set -euo pipefail
name=${1:?usage: launch/tpu_pod.sh NAME ZONE --config=FILE --workdir=DIR ...}
zone=${2:?usage: launch/tpu_pod.sh NAME ZONE --config=FILE --workdir=DIR ...}
shift 2
if [ "${1:-}" = -- ]; then
  command=${2:?a command after --}
else
  command=".venv/bin/python -m binarydm_jax.main --distributed=on $(printf '%q ' "$@")"
fi
project=${PROJECT:-binarydm_jax}
set -- gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="cd $project && $command"
[ -n "${DRY_RUN:-}" ] && { printf '%q ' "$@"; echo; exit; }
exec "$@"

#!/usr/bin/env bash
# One run by N processes on this machine's CPU, over gloo: what a run on several hosts is tried with first.
# Usage: launch/local_cluster.sh N --config=FILE --workdir=DIR [FLAGS of binarydm_jax.main]
# Signals go to all processes. If one fails, the others are ended, and its exit code is the script's.
set -uo pipefail
cd "$(dirname "$0")/.."
count=${1:?usage: launch/local_cluster.sh N --config=FILE --workdir=DIR ...}
shift
python=${PYTHON:-$( [ -x .venv/bin/python ] && echo .venv/bin/python || echo python3 )}
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])')
pids=()
trap 'kill -TERM "${pids[@]}" 2>/dev/null' TERM INT HUP
for ((id = 0; id < count; id++)); do
  JAX_PLATFORMS=cpu "$python" -m binarydm_jax.main --coordinator="localhost:$port" --num_processes="$count" \
    --process_id="$id" "$@" &
  pids+=($!)
done
code=0
while [ "${#pids[@]}" -gt 0 ]; do
  # Not `wait -n`: of processes that end together it knows the first and has no such job as the others.
  sleep 0.2
  remaining=() failed=0
  for pid in "${pids[@]}"; do
    if kill -0 "$pid" 2>/dev/null; then
      remaining+=("$pid")
      continue
    fi
    wait "$pid"
    status=$?
    [ "$status" -ne 0 ] && [ "$code" -eq 0 ] && code=$status
    # 75: stopped by a signal, as the others are going to be; anything else leaves them waiting for the one that failed.
    [ "$status" -ne 0 ] && [ "$status" -ne 75 ] && failed=1
  done
  pids=("${remaining[@]}")
  if [ "$failed" -eq 1 ] && [ "${#pids[@]}" -gt 0 ]; then
    sleep 5
    kill -KILL "${pids[@]}" 2>/dev/null
  fi
done
exit "$code"

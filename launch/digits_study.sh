#!/usr/bin/env bash
# The digits study: one teacher, then students of each method with equal budgets, then the table.
# Usage: launch/digits_study.sh [FOLDER] [FLAGS of binarydm_jax.study], such as --rows=complete --seeds=1,2,3,4,5
# Run again, it continues where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/install.sh
install requirements.txt
folder=runs/digits_study
if [ "$#" -gt 0 ] && [[ $1 != --* ]]; then folder=$1; shift; fi
jobs=$(($(nproc) < 4 ? $(nproc) : 4))  # a student on each CPU
exec "$python" -m binarydm_jax.study --config=configs/digits_study.py --folder="$folder" --jobs=$jobs "$@"

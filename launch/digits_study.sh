#!/usr/bin/env bash
# The digits study: one teacher, then three seeds of each method with equal budgets, then the table.
# Usage: launch/digits_study.sh [FOLDER] [METHOD ...]; run again, it continues where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/install.sh
install requirements.txt
folder=${1:-runs/digits_study}
shift || true
methods=("${@:-baseline binarydm_v1}")
main="$python -m binarydm_jax.main --config=configs/digits_study.py"

$main --mode=pretrain --workdir="$folder/teacher"
for seed in 1 2 3; do
  for method in ${methods[*]}; do
    $main --workdir="$folder/${method}_$seed" --config.method="$method" --config.seed="$seed" \
      --config.teacher.checkpoint="$folder/teacher"
  done
done
$python -m binarydm_jax.compare "$folder"/*_[123]

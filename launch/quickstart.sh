#!/usr/bin/env bash
# From nothing to a 1-bit diffusion model: makes .venv, trains on the embedded digits, binarizes, samples, reports.
# Usage: launch/quickstart.sh [WORKDIR]; run again, it continues where it stopped or shows the report.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/install.sh
install requirements.txt
"$python" -m binarydm_jax.main --config=configs/digits.py --workdir="${1:-runs/quickstart}"

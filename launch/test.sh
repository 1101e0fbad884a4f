#!/usr/bin/env bash
# The tests, as CI runs them: makes .venv with all that they need, checks the style, runs pytest.
# Usage: launch/test.sh [PYTEST ARGUMENTS], such as --slow.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/install.sh
install requirements-dev.txt
# Parity of the metrics. Its dependency torchvision is as large as it is unneeded.
"$python" -m pip install --quiet --disable-pip-version-check --no-deps torch-fidelity==0.4.0
"$python" -m ruff check .
# Whole files to each process, the longest first: compiling the small networks is nearly all the time.
processes=$(($(nproc) < 2 ? 2 : $(nproc) > 4 ? 4 : $(nproc)))
JAX_PLATFORMS=cpu "$python" -m pytest --numprocesses=$processes --dist=loadfile --no-loadscope-reorder "$@"

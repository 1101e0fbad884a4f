#!/usr/bin/env bash
# One host, all of its GPUs (or those of CUDA_VISIBLE_DEVICES), one process.
# Usage: launch/gpu.sh --config=FILE --workdir=DIR [FLAGS of binarydm_jax.main]
#        such as --config.mesh.fsdp=4 --config.compute.dtype=bfloat16
# Needs pip install "jax[cuda13]" of the version in requirements.txt. --config.compute.deterministic=True gives the same
# bits at every run, slower.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-$( [ -x .venv/bin/python ] && echo .venv/bin/python || echo python3 )}
# Without a GPU jax would train on the CPU and say so in a warning that is easily missed.
"$python" -c 'import jax, sys
try:
  jax.devices("gpu")
except RuntimeError as error:
  sys.exit(f"error: jax sees no GPU ({str(error).splitlines()[0]}); pip install \"jax[cuda13]=={jax.__version__}\"")'
exec "$python" -m binarydm_jax.main "$@"

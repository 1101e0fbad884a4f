"""The library half stands alone."""

import subprocess
import sys


def test_importing_quant_imports_nothing_else_of_the_package():
  code = (
    "import sys, binarydm_jax.quant;"
    "print(sorted({'.'.join(n.split('.')[:2]) for n in sys.modules if n.split('.')[0] == 'binarydm_jax'}))"
  )
  run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert run.stdout.strip() == "['binarydm_jax', 'binarydm_jax.quant']"

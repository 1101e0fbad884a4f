"""Shared by all tests: the flag for slow ones, XLA without optimizations, no threads in numpy, few collections."""

import gc
import os
import tempfile
from pathlib import Path

import pytest

# The networks of the tests are tiny: compiling them is nearly all the time, so it is done cheaply. Before jax starts.
os.environ["XLA_FLAGS"] = " ".join([
  os.environ.get("XLA_FLAGS", ""),
  "--xla_backend_optimization_level=0",
  "--xla_llvm_disable_expensive_passes=true",
  # A training step is some thousand kernels of a few instructions: a third less to compile with the plain emitter and
  # in one module.
  "--xla_cpu_use_fusion_emitters=false",
  "--xla_cpu_parallel_codegen_split_count=1",
])
# Operations without the Python traceback of each: a tenth less for a training step.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
# Products of small matrices in numpy: two processes of tests on two cores would wait for each other's threads.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# As the commands do (`command_line.set_up_jax`).
gc.set_threshold(50_000, 20, 50)
# Tests and the processes that they start compile the same programs: once is enough.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="binarydm_jax_tests_"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")


@pytest.fixture(scope="session", autouse=True)
def inspected_once():
  """Hundreds of tests build the same few networks: walking through one again and again would be most of their time."""
  from binarydm_jax.training import problem  # here, where jax has found the flags above

  real, known = problem.quant.inspect_layers, {}

  def inspect_layers(model, *inputs, **kwargs):
    key = model, inputs, tuple(kwargs.items())
    try:
      hash(key)
    except TypeError:  # arrays, or a model with rules
      return real(model, *inputs, **kwargs)
    if key not in known:
      known[key] = real(model, *inputs, **kwargs)
    return list(known[key])

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(problem.quant, "inspect_layers", inspect_layers)
    yield


def pytest_addoption(parser):
  parser.addoption("--slow", action="store_true", help="also run the tests that take minutes")


# Files that take longest, in this order: two processes that start with them end at about the same time.
LONG = (
  "reliability/test_killing.py", "test_end_to_end.py", "reliability/test_processes.py", "training/test_sharding.py",
  "deploy/test_runtime.py", "test_latent_diffusion.py", "models/test_unet.py", "importers/test_parity.py",
  "training/test_step.py", "importers/test_checkpoints.py", "deploy/test_packed.py", "test_export.py",
)  # fmt: skip


def pytest_collection_modifyitems(config, items):
  order = {str(Path(__file__).parent / name): i for i, name in enumerate(LONG)}
  items.sort(key=lambda item: order.get(str(item.path), len(order)))
  if config.getoption("--slow"):
    return
  deselected = [item for item in items if "slow" in item.keywords]
  config.hook.pytest_deselected(items=deselected)
  items[:] = [item for item in items if "slow" not in item.keywords]

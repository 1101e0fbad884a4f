"""What the commands share: the flag --config, one-line errors for flags, the compilation cache, CPUs."""

import gc
import os
import re
import sys
from pathlib import Path

from absl import flags, logging
from ml_collections import config_flags

# Where configs/ is, in a checkout and where the package is installed.
PROJECT = Path(__file__).parents[1]
CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment, such as configs/digits.py.")


def set_up_jax(deterministic=False):
  """The persistent compilation cache, so that a second run starts at once; fewer garbage collections.

  Args:
    deterministic: asks XLA for programs that give the same bits at every run on a GPU too.
  """
  if deterministic:
    # Read when jax makes its first backend.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true".strip()
  import jax

  if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    cache = os.path.join(os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "binarydm_jax", "xla")
    jax.config.update("jax_compilation_cache_dir", cache)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
  # Tracing makes millions of objects that stay, and each collection goes over them again.
  gc.set_threshold(50_000, 20, 50)
  # The libraries below log every detail at INFO; warnings stay.
  logging.set_verbosity(logging.WARNING)


def cpu_count():
  """CPUs that this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def find_config(argv):
  """The arguments, with the file of --config in the project's folder where there is none by that path from here.

  So `configs/digits.py` means the one that was installed. Exits with one line where there is neither: with a file that
  is not there ml_collections fails in several ways, most without its name.
  """
  argv = list(argv)
  for number, argument in enumerate(argv):
    name, equals, value = argument.partition("=")
    place = number if equals else number + 1
    if name not in ("--config", "-config") or place == len(argv):
      continue
    file, *words = (value if equals else argv[place]).split(":")  # a config may take words after a colon
    if os.path.isfile(file):
      continue
    if not (PROJECT / file).is_file():
      sys.exit(f"error: --config={file}: there is no such file; configs/ has the experiments")
    argv[place] = f"{name}=" * bool(equals) + ":".join([str(PROJECT / file), *words])
  return argv


def parse_flags(argv):
  """absl's flags, with one line for one that is missing or unknown, and for a config field that is not as it should."""
  argv = find_config(argv)
  given = [argument.split("=")[0].removeprefix("--config.") for argument in argv if argument.startswith("--config.")]
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    missing = re.match(r"flag --(\w+)=None", str(error))
    words = f"--{missing[1]} is missing" if missing else str(error).splitlines()[0]
    sys.exit(f"error: {words} (--help lists the flags)")
  except AttributeError as error:
    missing = re.search(r"\w+", str(error))[0]
    name = next((path for path in given if missing in path.split(".")), missing)
    hint = re.search(r'Did you mean "(\w+)"', str(error))
    sys.exit(f"error: there is no config field {name!r}" + (f"; did you mean {hint[1]!r}?" if hint else "")
             + " (configs/base.py lists all)")
  except (TypeError, ValueError, ImportError, OSError, SyntaxError) as error:
    sys.exit(f"error: --config: {str(error).splitlines()[0]}")

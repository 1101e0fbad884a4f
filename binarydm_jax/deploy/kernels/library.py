"""Which path of the kernels runs in this process, and why."""

import functools
import os

import jax

from binarydm_jax.deploy.kernels import build

NAMES = ("avx512vnni", "avx2", "neon", "portable")


@functools.cache
def loaded():
  """(library or None, its runnable paths, why there is none). Compiles at the first call of a version."""
  try:
    found = build.load()
  except build.BuildError as error:
    return None, (), str(error)
  for name in ("binarydm_fused_conv", "binarydm_integer_conv", "binarydm_attention"):
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(found, name)), platform="cpu")
  return found, tuple(found.binarydm_paths().decode().split()), ""


def paths():
  """Names of the paths that this machine can run, best first; () where the kernels cannot be built."""
  return loaded()[1]


def status():
  """(name of the path in use or None, one line that says why).

  The environment variable BINARYDM_KERNEL forces a path by its name, or says `off`.
  """
  asked = os.environ.get("BINARYDM_KERNEL", "")
  if asked == "off":
    return None, "native kernels are off (BINARYDM_KERNEL=off)"
  if asked and asked not in NAMES:
    return None, f"BINARYDM_KERNEL={asked} is none of {', '.join(NAMES)}, off"
  found, runnable, reason = loaded()
  if found is None:
    return None, f"native kernels are not available: {reason}"
  if asked and asked not in runnable:
    return None, f"BINARYDM_KERNEL={asked} cannot run on this processor, which runs {', '.join(runnable)}"
  if asked:
    return asked, f"native kernels: {asked} (BINARYDM_KERNEL)"
  return runnable[0], f"native kernels: {runnable[0]}, the best that this processor runs"


def require(path):
  """`path`, or the one in use if it is None. Raises RuntimeError."""
  if path is None:
    path, reason = status()
    if path is None:
      raise RuntimeError(reason)
  elif path not in paths():
    raise RuntimeError(f"path {path!r} cannot run here: {', '.join(paths()) or loaded()[2]}")
  return path


def threads():
  """BINARYDM_THREADS, or 0: all threads of XLA's pool. Raises ValueError."""
  text = os.environ.get("BINARYDM_THREADS") or "0"
  if not text.isdecimal():
    raise ValueError(f"BINARYDM_THREADS={text} is not a number of threads")
  return int(text)

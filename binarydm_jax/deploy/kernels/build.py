"""Compiles the kernels with the system's compiler, once for each version of sources, flags and compiler."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jaxlib

SOURCES = Path(__file__).parent / "src"
# Products and sums are rounded one by one on every path, so that all give the same bits.
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno", "-Wall", "-Wextra")
_AVX512 = "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni"
# What a file is allowed to use; the rest runs on every processor of its kind. Where a file's instructions are not
# allowed, it compiles to "no such path". XLA's headers are slow to optimize, and need not be.
_BINDING = {"ffi.cc": "-O1"}
EXTRA_FLAGS = {
  "x86_64": _BINDING | {
    "attention.cc": "-mavx2", "avx2.cc": "-mavx2",
    "avx512vnni.cc": _AVX512, "avx512popcount.cc": f"{_AVX512} -mavx512vpopcntdq",
  },
  "aarch64": _BINDING | {"neon.cc": "-march=armv8.2-a+dotprod"},
}  # fmt: skip
_MACHINES = {"amd64": "x86_64", "x86_64": "x86_64", "arm64": "aarch64", "aarch64": "aarch64"}


class BuildError(RuntimeError):
  """Why there is no library, in one line."""


def compiler():
  """The C++ compiler's path: $CXX, or the system's. Raises BuildError."""
  asked = os.environ.get("CXX")
  for name in [asked] if asked else ["c++", "g++", "clang++"]:
    path = shutil.which(name)
    if path:
      return path
  raise BuildError(f"no C++ compiler ({f'CXX={asked} was not found' if asked else 'install g++ or clang++'})")


def machine():
  """x86_64 or aarch64. Raises BuildError for other processors."""
  name = platform.machine()
  if name.lower() not in _MACHINES:
    raise BuildError(f"no kernels for the processor {name or 'unknown'}")
  return _MACHINES[name.lower()]


def commands(cxx, target, sources, include, folder, flags=()):
  """[(command, object file)] that compile `sources`, paths of .cc files, into `folder`."""
  extra = EXTRA_FLAGS[target]
  made = []
  for source in sources:
    out = Path(folder) / f"{source.stem}.o"
    made.append(([cxx, *FLAGS, *flags, *extra.get(source.name, "").split(), f"-isystem{include}", "-c", str(source),
                  "-o", str(out)], out))  # fmt: skip
  return made


def run(command):
  """Runs a command. Raises BuildError with the first error that it prints."""
  try:
    done = subprocess.run(command, capture_output=True, text=True)
  except OSError as error:
    raise BuildError(f"{command[0]} does not run: {error}") from error
  if done.returncode:
    lines = (done.stderr or done.stdout).strip().splitlines()
    line = next((line for line in lines if "error" in line), lines[0] if lines else f"exit code {done.returncode}")
    raise BuildError(f"{Path(command[0]).name} failed: {line.strip()}")
  return done.stdout


def cache_folder():
  """$XDG_CACHE_HOME/binarydm_jax/kernels, by default under ~/.cache. Raises BuildError: there is neither."""
  try:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "binarydm_jax" / "kernels"
  except RuntimeError:  # a user without a home
    raise BuildError("no folder to keep the kernels in; set XDG_CACHE_HOME") from None


def _digest(*parts):
  """Of texts and bytes, in 20 hexadecimal digits."""
  digest = hashlib.sha256()
  for part in parts:
    digest.update((part.encode() if isinstance(part, str) else part) + b"\0")
  return digest.hexdigest()[:20]


def library():
  """The path of the shared library, compiled now if this version was not yet by this compiler. Raises BuildError.

  Without any compiler it is one that another has built.

  It appears under its name when it is whole; two processes that build it at once do the same work, and either's file
  is good.
  """
  target, folder = machine(), cache_folder()
  files = sorted(path for path in SOURCES.iterdir() if path.is_file())
  contents = [part for file in files for part in (file.name.encode(), file.read_bytes())]
  what = _digest(jax.__version__, jaxlib.__version__, target, repr((FLAGS, EXTRA_FLAGS[target])), *contents)
  try:
    cxx = compiler()
    by = _digest(cxx, run([cxx, "--version"]))
  except BuildError:
    # As in an image that was built where there is a compiler, and runs where there is none.
    built = [] if os.environ.get("CXX") else sorted(folder.glob(f"kernels-{what}-*.so"))
    if not built:
      raise
    return built[0]
  path = folder / f"kernels-{what}-{by}.so"
  if os.path.exists(path):  # unlike Path.exists False in a folder that may not be searched; what follows says so
    return path
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="build-") as private:
      sources = [file for file in files if file.suffix == ".cc"]
      objects = commands(cxx, target, sources, jax.ffi.include_dir(), private)
      with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(run, [command for command, _ in objects]))
      whole = Path(private) / path.name
      run([cxx, "-shared", "-pthread", *(str(out) for _, out in objects), "-o", str(whole)])
      os.replace(whole, path)
  except OSError as error:
    raise BuildError(f"cannot write the kernels' cache (XDG_CACHE_HOME moves it): {error}") from error
  return path


def load():
  """The shared library as ctypes sees it, types declared. Raises BuildError."""
  path = library()
  try:
    loaded = ctypes.CDLL(str(path))
  except OSError as error:
    raise BuildError(f"{path} does not load: {error}; remove it to build it again") from error
  shape = ctypes.POINTER(ctypes.c_int)
  loaded.binarydm_paths.restype = ctypes.c_char_p
  loaded.binarydm_attention_runs.restype = ctypes.c_int
  loaded.binarydm_packed_bytes.argtypes = [ctypes.c_char_p, shape]
  loaded.binarydm_packed_bytes.restype = ctypes.c_size_t
  loaded.binarydm_pack.argtypes = [ctypes.c_char_p, shape, ctypes.c_void_p, ctypes.c_void_p]
  loaded.binarydm_pack.restype = None
  return loaded

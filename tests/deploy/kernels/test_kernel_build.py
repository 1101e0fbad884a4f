"""The build: on first use, cached, whole or not at all; without it a reason in one line. And the test program of the
C++ sources under sanitizers and, where the tools are installed, emulators."""

import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import pytest

from binarydm_jax.deploy import kernels
from binarydm_jax.deploy.kernels import build, library

HERE = Path(__file__).parent


@pytest.fixture
def fake_sources(tmp_path, monkeypatch):
  """Sources that compile in no time, and a cache of their own."""
  (tmp_path / "src").mkdir()
  (tmp_path / "src" / "one.cc").write_text('extern "C" int one() { return 1; }\n')
  monkeypatch.setattr(build, "SOURCES", tmp_path / "src")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  return tmp_path / "src"


def test_without_a_home(monkeypatch):
  """A user without a home folder: a reason, and not an error that nobody expects."""
  monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

  def home():
    raise RuntimeError("Could not determine home directory.")

  monkeypatch.setattr(build.Path, "home", home)
  with pytest.raises(build.BuildError, match="set XDG_CACHE_HOME"):
    build.cache_folder()


def test_cache(fake_sources, monkeypatch):
  """Built once; again for other sources or flags; nothing else is left in the folder."""
  first = build.library()
  assert first.parent == build.cache_folder()
  ran = []
  run = build.run
  monkeypatch.setattr(build, "run", lambda command: ran.append(command) or run(command))
  assert build.library() == first
  assert [command[-1] for command in ran] == ["--version"]
  (fake_sources / "one.cc").write_text('extern "C" int one() { return 2; }\n')
  second = build.library()
  monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-DX"))
  assert len({first, second, build.library()}) == 3
  assert all(file.suffix == ".so" for file in build.cache_folder().iterdir())


def test_without_a_compiler(fake_sources, monkeypatch):
  """What one has built is used where there is none by now, but of these sources alone."""
  first = build.library()

  def none():
    raise build.BuildError("no C++ compiler")

  monkeypatch.setattr(build, "compiler", none)
  assert build.library() == first
  with monkeypatch.context() as patch:
    patch.setenv("CXX", "clang++-99")  # asked for by name
    with pytest.raises(build.BuildError, match="no C[+][+] compiler"):
      build.library()
  (fake_sources / "one.cc").write_text('extern "C" int one() { return 2; }\n')
  with pytest.raises(build.BuildError, match="no C[+][+] compiler"):
    build.library()


def test_a_folder_that_may_not_be_searched(fake_sources, monkeypatch):
  """As another user's: a reason, and XLA takes over."""
  stat, makedirs = os.stat, os.mkdir

  def refuse(path, *rest, how=stat, **named):
    if "cache" in str(path):
      raise PermissionError(13, "Permission denied", str(path))
    return how(path, *rest, **named)

  monkeypatch.setattr(os, "stat", refuse)
  monkeypatch.setattr(os, "mkdir", lambda *rest, **named: refuse(*rest, how=makedirs, **named))
  with pytest.raises(build.BuildError, match="cannot write the kernels' cache .*Permission denied"):
    build.library()


def test_two_builds_at_once(fake_sources):
  """Both get the same whole library."""
  with ThreadPoolExecutor(4) as pool:
    paths = [future.result() for future in [pool.submit(build.library) for _ in range(4)]]
  assert len(set(paths)) == 1
  assert list(build.cache_folder().iterdir()) == paths[:1]


def test_reasons(fake_sources, monkeypatch, tmp_path):
  """No compiler, another processor, sources that do not compile, a cache that cannot be written."""
  monkeypatch.setenv("CXX", "no-such-compiler")
  with pytest.raises(build.BuildError, match="no C[+][+] compiler [(]CXX=no-such-compiler was not found[)]"):
    build.library()
  monkeypatch.delenv("CXX")
  with monkeypatch.context() as patch:
    patch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(build.BuildError, match="no kernels for the processor riscv64"):
      build.library()
  (fake_sources / "two.cc").write_text("nonsense\n")
  with pytest.raises(build.BuildError, match="failed: .*two.cc.*error") as caught:
    build.library()
  assert "\n" not in str(caught.value)
  (fake_sources / "two.cc").unlink()
  (tmp_path / "file").write_text("")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
  with pytest.raises(build.BuildError, match="cannot write the kernels' cache"):
    build.library()


def test_no_compiler_is_no_exception():
  """Importing and asking works without a compiler; using the kernels says why not."""
  program = (
    "from binarydm_jax.deploy import kernels\n"
    "print(kernels.status(), kernels.paths())\n"
    "try: kernels.packed_bytes((1, 1, 1, 1), 4, 1)\n"
    "except RuntimeError as error: print(error)\n"
  )
  environment = os.environ | {"CXX": "no-such-compiler", "JAX_PLATFORMS": "cpu"}
  done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
  reason = "native kernels are not available: no C++ compiler (CXX=no-such-compiler was not found)"
  assert done.stdout.splitlines() == [f"(None, '{reason}') ()", reason]


def test_forced_path(monkeypatch):
  """BINARYDM_KERNEL: each path that runs, off, a path of another processor, nonsense."""
  for path in kernels.paths():
    monkeypatch.setenv("BINARYDM_KERNEL", path)
    assert kernels.status() == (path, f"native kernels: {path} (BINARYDM_KERNEL)")
  monkeypatch.setenv("BINARYDM_KERNEL", "off")
  assert kernels.status() == (None, "native kernels are off (BINARYDM_KERNEL=off)")
  with pytest.raises(RuntimeError, match="are off"):
    kernels.packed_bytes((1, 1, 1, 1), 4, 1)
  absent = next(name for name in library.NAMES if name not in kernels.paths())
  monkeypatch.setenv("BINARYDM_KERNEL", absent)
  path, reason = kernels.status()
  assert path is None and f"{absent} cannot run" in reason
  monkeypatch.setenv("BINARYDM_KERNEL", "fast")
  path, reason = kernels.status()
  assert path is None and "none of" in reason
  with pytest.raises(RuntimeError, match="'fast' cannot run here"):
    library.require("fast")


def compile_selftest(folder, cxx, target, flags, per_file=None, link=()):
  """Compiles sources and test program for `target` and gives the program's path."""
  sources = [path for path in sorted(build.SOURCES.glob("*.cc")) if path.name != "ffi.cc"]
  flags = [*flags, f"-I{build.SOURCES}", "-pthread"]
  made = build.commands(cxx, target, [*sources, HERE / "selftest.cc"], jax.ffi.include_dir(), folder, flags)
  for (command, _), source in zip(made, sources):
    command += (per_file or {}).get(source.name, [])
  with ThreadPoolExecutor(2) as pool:
    list(pool.map(build.run, [command for command, _ in made]))
  program = folder / "selftest"
  build.run([cxx, *flags, *link, *(str(out) for _, out in made), "-o", str(program)])
  return program


def run_selftest(command):
  done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout.splitlines()


@pytest.mark.slow
def test_sanitizers(tmp_path):
  """No access outside of an array, no undefined behaviour, on every path that runs here, with threads."""
  sanitize = ["-O0", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
  program = compile_selftest(tmp_path, build.compiler(), build.machine(), sanitize)
  attention = ["attention ok"] if kernels.attention_runs() else []
  assert run_selftest([program, 4]) == attention + [f"{path} ok" for path in kernels.paths()]


@pytest.mark.slow
@pytest.mark.skipif(
  not (shutil.which("aarch64-linux-gnu-g++") and shutil.which("qemu-aarch64-static")),
  reason="needs g++-aarch64-linux-gnu and qemu-user-static",
)
def test_neon_emulated(tmp_path):
  """The NEON path, cross-compiled, on an emulated processor."""
  program = compile_selftest(tmp_path, "aarch64-linux-gnu-g++", "aarch64", ["-O1"], link=["-static"])
  assert run_selftest(["qemu-aarch64-static", "-cpu", "max", program, 4]) == ["neon ok", "portable ok"]


@pytest.mark.slow
@pytest.mark.parametrize("popcount", [True, False])
@pytest.mark.skipif(
  platform.machine() != "x86_64" or not Path("/usr/include/simde").exists() or "avx2" not in kernels.paths(),
  reason="needs libsimde-dev and AVX2",
)
def test_avx512_emulated(popcount, tmp_path):
  """The AVX-512 path with its instructions as functions of SIMDe, on processors with population counts and without."""
  emulated = ["-include", str(HERE / "avx512_emulation.h"), "-DBINARYDM_EMULATE_AVX512", "-mavx2", "-mno-avx512f"]
  per_file = {"avx512vnni.cc": emulated, "avx512popcount.cc": emulated if popcount else ["-mno-avx512vpopcntdq"]}
  program = compile_selftest(tmp_path, build.compiler(), "x86_64", ["-O1", "-w"], per_file)
  assert run_selftest([program, 4, "avx512vnni"]) == ["avx512vnni ok"]

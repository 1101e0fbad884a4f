"""Imports point one way: quant -> models -> {diffusion, distill} -> training -> main."""

import ast
import fnmatch
import tomllib
from pathlib import Path

import pytest

import binarydm_jax

PACKAGE = Path(binarydm_jax.__file__).parent

ALLOWED = {
  "quant": {"quant"},
  "models": {"quant", "models"},
  "diffusion": {"diffusion"},
  "distill": {"distill"},
  "data": {"files", "data"},
  "deploy": {"quant", "models", "diffusion", "files", "deploy"},
  "evaluation": {
    "quant", "models", "diffusion", "data", "files", "importers", "mesh", "command_line", "compilation",
    "evaluation",
  },
  "importers": {"models", "diffusion", "importers"},
  "training": {
    "quant", "models", "diffusion", "distill", "data", "errors", "evaluation", "files", "first_stage", "mesh", "plots",
    "preemption", "compilation", "training",
  },
  "study": {
    "evaluation", "training", "compare", "evaluate", "formats", "plots", "panels", "command_line", "files",
    "preemption", "workdir", "study",
  },
  "benchmark": {"quant", "models", "deploy", "training", "command_line", "files", "panels", "benchmark"},
}


def imports(path):
  """Parts of binarydm_jax that a file imports."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module == "binarydm_jax":
      names = [f"binarydm_jax.{alias.name}" for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      names = [node.module or ""]
    else:
      continue
    yield from (name.split(".")[1] for name in names if name.startswith("binarydm_jax."))


@pytest.mark.parametrize("part", ALLOWED)
def test_direction(part):
  """A part imports only what stands before it."""
  files = list((PACKAGE / part).rglob("*.py"))
  assert files
  for path in files:
    assert set(imports(path)) <= ALLOWED[part], path


def test_every_part_is_listed():
  """A new folder must say what it may import."""
  folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and (path / "__init__.py").exists()}
  assert folders == set(ALLOWED)


def test_no_pickle_and_no_tensorflow():
  """No module loads pickles or imports TensorFlow; torch reads PyTorch files and is a benchmark's rival."""
  for path in PACKAGE.rglob("*.py"):
    modules = {name.split(".")[0] for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import)
               for name in (alias.name for alias in node.names)}
    allowed = {"torch"} if path.name.startswith("torch_") else set()
    assert not modules & {"pickle", "tensorflow", "torch", "dill", "cloudpickle"} - allowed, path


def test_what_is_installed():
  """All packages and the configs, which the command line needs wherever it runs; not the tests."""
  settings = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["setuptools"]
  include = settings["packages"]["find"]["include"]
  taken = lambda folder: any(fnmatch.fnmatch(folder.relative_to(PACKAGE.parent).as_posix().replace("/", "."), pattern)
                             for pattern in include)  # fmt: skip
  folders = {path.parent for path in PACKAGE.rglob("*.py")} | {PACKAGE.parent / "configs"}
  assert len(folders) > 10 and all(map(taken, folders))
  assert not taken(PACKAGE.parent / "tests")

"""Documents are true: their links lead somewhere, and blocks that are marked as tested run.

`sh test` and `python test` run here, `sh slow` and `python slow` with --slow; the Python blocks of one document share
their names, as a reader would have it.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("binarydm_jax/**/*.md")])
BLOCK = re.compile(r"^```(sh|python) (test|slow)\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)#\s]*)(#[^)\s]*)?\)")


def names(paths):
  return [str(path.relative_to(ROOT)) for path in paths]


def blocks(mark):
  """(document, language, [code]) of the marked blocks; those in Python of one document belong together."""
  found = []
  for path in DOCUMENTS:
    marked = [(language, code) for language, what, code in BLOCK.findall(path.read_text()) if what == mark]
    python = [code for language, code in marked if language == "python"]
    # Those of the library run in test_readme, which looks at what they leave.
    found += [(path, "python", python)] * bool(python and path.name != "library.md")
    found += [(path, "sh", [code]) for language, code in marked if language == "sh"]
  return [pytest.param(*item, id=f"{item[0].name}-{item[1]}") for item in found]


def run(language, codes, folder, monkeypatch):
  for name in ("configs", "launch"):
    (folder / name).symlink_to(ROOT / name)
  monkeypatch.chdir(folder)
  if language == "python":
    namespace = {}
    for code in codes:
      exec(code, namespace)
    return
  path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
  environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
  (code,) = codes
  done = subprocess.run(["bash", "-euc", code], env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("path, language, codes", blocks("test"))
def test_marked_blocks_run(path, language, codes, tmp_path, monkeypatch):
  run(language, codes, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("path, language, codes", blocks("slow"))
def test_slow_blocks_run(path, language, codes, tmp_path, monkeypatch):
  run(language, codes, tmp_path, monkeypatch)


@pytest.mark.slow
def test_notebook_runs(tmp_path, monkeypatch):
  """All cells, top to bottom, with fewer steps and samples."""
  book = json.loads((ROOT / "docs" / "digits.ipynb").read_text())
  cells = ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]
  config = "config = digits.get_config()"
  small = {"teacher.steps": 4, "student.steps": 8, "sample.steps": 2, "evaluation.num_samples": 96,
           "model.model_channels": 8, "model.norm_groups": 4, "model.num_res_blocks": 1, "log.every": 2,
           "checkpoint.every": 4, "teacher.batch_size": 8, "student.batch_size": 8}  # fmt: skip
  assert sum(config in cell for cell in cells) == 1
  cells = [cell.replace(config, f"{config}\nconfig.update_from_flattened_dict({small})") for cell in cells]
  monkeypatch.setattr(sys, "path", [*sys.path])
  run("python", cells, tmp_path, monkeypatch)
  assert (tmp_path / "runs" / "notebook" / "binarydm_v1" / "report.html").exists()


def test_there_are_marked_blocks():
  """A mark that is misspelt would silently test nothing."""
  assert len(blocks("test")) >= 3
  for path in DOCUMENTS:
    assert set(re.findall(r"^```\w+ (\w+)$", path.read_text(), re.MULTILINE)) <= {"test", "slow"}, path


@pytest.mark.parametrize("path", DOCUMENTS, ids=names(DOCUMENTS))
def test_links_lead_somewhere(path):
  """Relative links name files, and headings that are there."""
  for target, anchor in LINK.findall(path.read_text()):
    if target.startswith(("http://", "https://", "mailto:")):
      continue
    file = (path.parent / target).resolve() if target else path
    assert file.exists(), f"{path.name}: {target}"
    if anchor:
      headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
      anchors = {"#" + re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
      assert anchor in anchors, f"{path.name}: {target}{anchor}"

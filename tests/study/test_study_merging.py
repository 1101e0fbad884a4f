"""Studies of several machines in one table: by hand what they make together, and what does not belong together."""

import json

import pytest

from binarydm_jax.study import merging, tables
from tests import tiny
from tests.study.synthetic import make_students, write_run


def make_study(folder, rows, seeds, config=None, **fields):
  """results.json of a study with distances 10 for full precision, 30 for the baseline, 20 + seed for others."""
  for run in make_students(folder, rows, seeds, config):
    fid = {"full_precision": 10.0, "baseline": 30.0}.get(run.row.name, 20.0 + run.seed)
    write_run(run, fid, fid / 100, **fields)
  tables.write(folder)
  return folder / "results.json"


def test_seeds_and_rows_meet(tmp_path):
  """Seed 2 of another machine, and a row of seed 1 whose ends of the scale are here: (30 - 21) / 20, (30 - 22) / 20."""
  make_study(tmp_path / "a", "full_precision,baseline", (1,))
  added = [make_study(tmp_path / "b", "full_precision,baseline,lmb", (2,)), make_study(tmp_path / "c", "lmb", (1,))]
  summaries, path = tables.write(tmp_path / "a", added)
  by_name = {row["name"]: row for row in summaries}
  assert list(by_name) == ["teacher", "full_precision", "baseline", "lmb"]
  assert sorted(by_name["lmb"]["seeds"]) == sorted(by_name["teacher"]["seeds"]) == [1, 2]
  assert sorted(by_name["lmb"]["metrics"]["gap_closed_fid"]["values"]) == pytest.approx([0.4, 0.45])
  assert "| LMB | 1/4 | 1.25 | 300 KiB | 2.00 M | 2 | 21.5 ± 0.7 |" in path.read_text()
  # What it wrote can be added in its turn, to a folder without runs.
  again, other = tables.write(tmp_path / "none", [tmp_path / "a" / "results.json"])
  assert again == summaries and (tmp_path / "none" / "results.csv").read_text().count("\nlmb,") == 2
  assert other.read_text().split("\n## How")[0].split("![")[0] == path.read_text().split("\n## How")[0].split("![")[0]


@pytest.mark.parametrize("changes, fields, words", [
  ({"student.steps": 12}, {}, r"differ in training_steps: \[6\] and \[12\]"),
  ({"quant.tau": 0.5}, {}, "differ in quant.tau: 0.09 and 0.5"),
  ({"student.learning_rate": 0.5}, {}, "differ in student.learning_rate: 0.001 and 0.5"),
  ({"quant.act_bits": 8}, {}, "differ in quant.act_bits: 4 and 8"),
  ({}, dict(teacher_sha256="ef" * 32), "differ in the teacher of seed 1: cdcd"),
  ({}, dict(precision=0.75), r"a and .*results.json differ in precision of lmb seed 1: 0.5 and 0.75"),
])
def test_what_does_not_belong_together(tmp_path, changes, fields, words):
  make_study(tmp_path / "a", "baseline,lmb", (1,))
  other = make_study(tmp_path / "b", "lmb", (1,), tiny.get_config(**changes), **fields)
  before = (tmp_path / "a" / "results.json").read_text()
  with pytest.raises(ValueError, match=words):
    tables.write(tmp_path / "a", [other])
  assert (tmp_path / "a" / "results.json").read_text() == before


def test_other_protocols(tmp_path):
  make_study(tmp_path / "a", "baseline", (1,))
  other = make_study(tmp_path / "b", "lmb", (1,))
  other.write_text(other.read_text().replace('"num_samples": 96', '"num_samples": 97'))
  with pytest.raises(ValueError, match="differ in protocol"):
    tables.write(tmp_path / "a", [other])


def test_other_real_images(tmp_path):
  """Of a published reference the number is not known, but the file's digest is."""
  studies = [make_study(tmp_path / name, rows, (1,)) for name, rows in (("a", "baseline"), ("b", "lmb"))]
  for path, digest in zip(studies, ("ab", "cd")):
    content = json.loads(path.read_text())
    content["about"]["images"] = {"real": {"file_sha256": digest}}
    path.write_text(json.dumps(content))
  with pytest.raises(ValueError, match="differ in the real images: .*ab.* and .*cd"):
    tables.write(tmp_path / "none", studies)


def test_one_row_is_of_one_network(tmp_path):
  """Another size at another seed; and a file of before, which has no fields, is taken."""
  make_study(tmp_path / "a", "lmb", (1,))
  other = make_study(tmp_path / "b", "lmb", (2,), size_bytes=5)
  with pytest.raises(ValueError, match="the runs of lmb differ in size_bytes: 307200 and 5"):
    tables.write(tmp_path / "a", [other])
  other = make_study(tmp_path / "c", "lmb", (2,))
  content = json.loads(other.read_text())
  del content["about"]["fields"]
  other.write_text(json.dumps(content))
  assert len(tables.write(tmp_path / "a", [other])[0]) == 2


def test_the_same_run_twice_counts_once(tmp_path):
  """A folder that was copied."""
  other = make_study(tmp_path / "b", "lmb", (1,))
  make_study(tmp_path / "a", "baseline,lmb", (1,))
  summaries, _ = tables.write(tmp_path / "a", [other])
  assert {row["name"]: row["seeds"] for row in summaries} == {"teacher": [1], "baseline": [1], "lmb": [1]}


@pytest.mark.parametrize("text, words", [
  (None, ": No such file or directory; give results.json of other studies"),
  *((text, " is no results.json of a study") for text in ("{", "[]", '{"about": {}, "rows": [], "records": []}')),
])  # fmt: skip
def test_files_that_are_something_else(tmp_path, text, words):
  """One line that names the file."""
  path = tmp_path / "other.json"
  if text:
    path.write_text(text)
  with pytest.raises(ValueError, match=rf"^--add=.*other\.json{words}"):
    merging.read(path)

"""Pictures of a study: curves and grids by hand, files that are there when their data are."""

import json

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from binarydm_jax.study import figures, results
from tests.study.synthetic import make_students, write_run


def write_losses(run, losses, stage="student"):
  lines = [dict(stage=stage, step=step, loss=9.0, simple=loss) for step, loss in losses.items()]
  (run.workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_samples(run, name, value):
  folder = run.workdir / "samples"
  folder.mkdir(exist_ok=True)
  np.savez(folder / f"{name}.npz", arr_0=np.full((50, 8, 8, 1), value, np.uint8))


@pytest.fixture
def runs(tmp_path):
  """Finished runs: {(row, seed): Run}."""
  found = {(run.row.name, run.seed): run for run in make_students(tmp_path, "baseline,lmb,binarydm_v1", (1, 2))}
  for i, run in enumerate(found.values()):
    write_run(run, 20.0 + i, 0.2)
  return found


def summaries(folder):
  return results.summarize(results.collect(folder)[0])


def test_curves_are_means_over_seeds(runs, tmp_path):
  """(0.4 + 0.2) / 2 where both seeds have the step; the denoising loss, not the sum; no log, no curve."""
  write_losses(runs["lmb", 1], {2: 0.4, 4: 0.3, 6: 0.1})
  write_losses(runs["lmb", 2], {2: 0.2, 4: 0.1})
  ((label, steps, losses),) = figures.training_curves(tmp_path, summaries(tmp_path))
  assert label == "LMB" and steps.tolist() == [2, 4]
  np.testing.assert_allclose(losses, [0.3, 0.2])


def test_grids(runs, tmp_path):
  """The teacher's and the methods' samples of one seed, the teacher's once, under their distances; where the methods
  as a whole are fewer, the best other row."""
  for i, (name, seed) in enumerate([("baseline", 1), ("binarydm_v1", 1), ("lmb", 1)]):
    write_samples(runs[name, seed], "student", i)
  write_samples(runs["baseline", 1], "teacher", 100)
  grids = figures.sample_grids(tmp_path, summaries(tmp_path))
  captions = ["teacher: 11.5 ± 0.7", "baseline: 21.5 ± 2.1", "binarydm_v1: 23.5 ± 2.1", "lmb: 22.5 ± 2.1"]
  assert list(grids) == captions
  assert [int(images.max()) for images in grids.values()] == [100, 0, 1, 2]
  assert {images.shape for images in grids.values()} == {(36, 8, 8, 1)}


def test_other_rows_in_grids(tmp_path):
  """The best by held-out loss, not full precision, and of the same seed."""
  losses = {"full_precision": 0.1, "baseline": 0.6, "ebb": 0.5, "lmb": 0.3, "lsq_w2": 0.4}
  for run in [*make_students(tmp_path, ",".join(losses), (1,)), *make_students(tmp_path, "binarydm_v1_paper", (2,))]:
    write_run(run, 20.0, losses.get(run.row.name, 0.2))
    write_samples(run, "student", 1)
    write_samples(run, "teacher", 1)
  grids = figures.sample_grids(tmp_path, summaries(tmp_path))
  assert [caption.split(":")[0] for caption in grids] == ["teacher", "baseline", "lmb", "lsq_w2"]


def test_files(runs, tmp_path):
  """Each picture where there is something to draw, and none where there is not."""
  written = [path.name for path in figures.write(tmp_path, summaries(tmp_path))]
  assert written == ["fid.png", "fid_by_size.png", "heldout_loss.png", "heldout_loss_by_size.png"]
  write_losses(runs["lmb", 1], {2: 0.4, 4: 0.3})
  write_samples(runs["baseline", 1], "student", 1)
  write_samples(runs["baseline", 1], "teacher", 1)
  written = figures.write(tmp_path, summaries(tmp_path))
  assert [path.name for path in written][4:] == ["training.png", "samples.png"]
  for path in written:
    with Image.open(path) as picture:
      assert picture.width > 100 and len(picture.convert("RGB").getcolors(2**24)) > 3, path


def test_without_a_feature_network(tmp_path):
  """The held-out loss alone."""
  for run in make_students(tmp_path, "baseline", (1,)):
    write_run(run, None, 0.2)
    content = json.loads((run.workdir / "results.json").read_text())
    content["models"][0]["fid"] = None
    (run.workdir / "results.json").write_text(json.dumps(content))
  written = [path.name for path in figures.write(tmp_path, summaries(tmp_path))]
  assert written == ["heldout_loss.png", "heldout_loss_by_size.png"]


def test_names_beside_sizes_do_not_cover_each_other(tmp_path):
  """Core rows that are as large and as good keep a line's distance; other rows are points without names."""
  for run in make_students(tmp_path, "baseline,ebb,binarydm_v5,baseline_lrm", (1,)):
    write_run(run, 20.0, 0.2)
  axes = Figure().subplots()
  rows = [row for row in summaries(tmp_path) if row["name"] != results.TEACHER]
  figures._draw_sizes(rows, "fid", "Frechet distance", axes, figures.THEME)
  names = {text.get_text(): text.xy[1] for text in axes.texts}
  assert set(names) == {"baseline", "ebb", "binarydm_v5"}
  assert np.diff(sorted(names.values())).min() >= 0.039 * np.diff(axes.get_ylim())[0]

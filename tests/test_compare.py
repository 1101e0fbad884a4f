"""Comparison of runs: means and deviations by hand, unlike protocols refused, and errors in one line."""

import json

import pytest

from binarydm_jax import compare

PROTOCOL = dict(feature_sha256="ab", num_samples=1024, sampler="ddim", steps=50, eta=0.0, clip=True, spacing="ldm")


def run(method="binarydm", fid=0.5, loss=0.15, bits="1/4", **fields):
  """The contents of a results.json."""
  teacher = dict(PROTOCOL, name="teacher", bits="32/32", true_weight_bits=32.0, fid=0.3, heldout_loss=0.13,
                 size_bytes=3 * 2**20)
  student = dict(PROTOCOL, name="student", bits=bits, true_weight_bits=1.125, fid=fid, heldout_loss=loss,
                 size_bytes=240 * 2**10)
  student.update(fields)
  return {"method": method, "models": [teacher, student]}


def write(folder, results):
  folder.mkdir()
  (folder / "results.json").write_text(results if isinstance(results, str) else json.dumps(results))
  return str(folder)


def test_rows_by_hand():
  """(0.50, 0.56) is 0.53 +- 0.0424 (= 0.03 sqrt 2); one seed has no deviation; the same teacher counts once."""
  rows = compare.compare([run(fid=0.50, loss=0.140), run(fid=0.56, loss=0.150), run("baseline", 12.345)])
  assert rows == [
      ("teacher", "1", "32/32", "32.00", "0.3000", "0.1300", "3.00 MiB"),
      ("binarydm", "2", "1/4", "1.12", "0.5300 ± 0.0424", "0.1450 ± 0.0071", "240 KiB"),
      ("baseline", "1", "1/4", "1.12", "12.3", "0.1500", "240 KiB"),
  ]


@pytest.mark.parametrize("fids, text", [
    ((1.0, 2.0, 3.0), "2.00 ± 1.00"), ((10.0, 14.0), "12.0 ± 2.8"), ((123.4,), "123"), ((0.12345,), "0.1235"),
    ((None, 1.0), "-"),
])
def test_figures(fids, text):
  """Three significant digits from 1 on, four decimals under it, and a dash where a distance is missing."""
  assert compare.compare([run(fid=fid) for fid in fids])[1][4] == text


def test_methods_and_bits_are_grouped_apart():
  """W1A4 and W1A8 of one method are two rows."""
  rows = compare.compare([run(bits="1/4"), run(bits="1/8"), run("lsq", bits="2/4"), run(bits="1/4", fid=0.7)])
  assert [(row[0], row[1], row[2]) for row in rows[1:]] == [
      ("binarydm", "2", "1/4"), ("binarydm", "1", "1/8"), ("lsq", "1", "2/4")]


def test_two_teachers_are_averaged():
  """Teachers of other seeds have other figures and count as seeds."""
  other = run()
  other["models"][0].update(fid=0.5, heldout_loss=0.15)
  row = compare.compare([run(), other, run()])[0]
  assert row[1] == "2" and row[4] == "0.4000 ± 0.1414"


def test_other_settings_are_no_seeds():
  """Two learning rates of one method are two rows; a file of before does not say its settings."""
  results = [dict(run(fid=fid), settings_sha256=settings) for fid, settings in ((1.0, "a"), (2.0, "a"), (4.0, "b"))]
  assert [row[1] for row in compare.compare(results)[1:]] == ["2", "1"]
  assert [row[1] for row in compare.compare([*results[:2], run()])[1:]] == ["3"]


def test_an_unfinished_student_is_no_seed():
  """One that was exported before its last step stands in a row of its own, which says so."""
  results = [dict(run(fid=fid), settings_sha256="a", packed=dict(step=step, steps=9))
             for fid, step in ((1, 9), (2, 9), (4, 5))]  # fmt: skip
  rows = compare.compare(results)[1:]
  assert [row[:2] for row in rows] == [("binarydm", "2"), ("binarydm, step 5 of 9", "1")]
  assert [row[:2] for row in compare.compare(results[:2])[1:]] == [("binarydm", "2")]
  assert [row[:2] for row in compare.compare(results[2:])[1:]] == [("binarydm, step 5 of 9", "1")]


def test_rows_say_what_sets_them_apart():
  """Two parts of one method are two rows that can be told apart."""
  settings = dict(activation="lsq", averaged=True)
  results = [dict(run(), settings_sha256=sha256, settings={**settings, **changed})
             for sha256, changed in (("a", {}), ("b", dict(activation="asymmetric")), ("a", {}))]  # fmt: skip
  rows = compare.compare(results)[1:]
  assert [row[:2] for row in rows] == [("binarydm, activation=lsq", "2"), ("binarydm, activation=asymmetric", "1")]
  assert [row[0] for row in compare.compare(results[:1])] == ["teacher", "binarydm"]


def test_teachers_of_other_networks_are_no_seeds():
  large = run()
  large["models"][0].update(size_bytes=9 * 2**20, fid=0.2)
  assert [row[1] for row in compare.compare([run(), large])][:2] == ["1", "1"]


@pytest.mark.parametrize("name, a, b", [
    ("reference", dict(fid=1.0, count=100), dict(fid=1.0, count=None)), ("heldout", dict(images=9), dict(images=8)),
])
def test_unlike_images_are_refused(name, a, b):
  """Distances to other real images, losses on other held-out ones; what a file does not say is not compared."""
  with pytest.raises(ValueError, match="different (real|held-out) images"):
    compare.compare([dict(run(), **{name: a}), dict(run(), **{name: b})])
  compare.compare([dict(run(), **{name: a}), run()])


@pytest.mark.parametrize("field, value", [
    ("feature_sha256", "cd"), ("num_samples", 64), ("sampler", "ddpm"), ("steps", 20), ("eta", 1.0), ("clip", False),
    ("spacing", "leading"),
])
def test_unlike_protocols_are_refused(field, value):
  with pytest.raises(ValueError, match="different protocols"):
    compare.compare([run(), run(**{field: value})])


def test_main_prints_a_table(tmp_path, capsys):
  a = write(tmp_path / "a", dict(run(), reference=dict(fid=0.28, what="half against half")))
  compare.main([a, write(tmp_path / "b", run(fid=0.7))])
  lines = capsys.readouterr().out.splitlines()
  assert lines[0].startswith("| model | seeds | bits W/A |") and set(lines[1]) <= set("|- ")
  assert lines[3] == "| binarydm | 2 | 1/4 | 1.12 | 0.6000 ± 0.1414 | 0.1500 ± 0.0000 | 240 KiB |"
  assert all(line.count("|") == 8 for line in lines[:4])
  assert lines[-1] == "For scale: half against half gives 0.3."
  compare.main([write(tmp_path / "c", dict(run(), reference=dict(fid=None, what="half against half")))])
  assert "For scale" not in capsys.readouterr().out


def test_errors_are_one_line(tmp_path):
  """Nothing named, no results there, unlike protocols, damaged JSON: exits with a message, no traceback."""
  good = write(tmp_path / "good", run())
  cases = [
      ([], "name at least one workdir"),
      ([good, good + "/../good"], "a workdir is named twice"),
      ([good, str(tmp_path / "none")], "none/results.json does not exist; run --mode=all"),
      ([good, write(tmp_path / "other", run(steps=3))], "different protocols"),
      ([write(tmp_path / "damaged", "{")], "error: "),
  ]
  for argv, message in cases:
    with pytest.raises(SystemExit) as caught:
      compare.main(argv)
    text = str(caught.value.code)
    assert message in text and text.startswith("error: ") and "\n" not in text

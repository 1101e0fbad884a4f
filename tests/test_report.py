"""The report: numbers by hand, honest words, strict JSON, a page that is closed in itself, and the pictures."""

import base64
import copy
import html.parser
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from binarydm_jax import plots, report

RESULTS = {
    "title": "Digits",
    "method": "binarydm_v1",
    "models": [
        {"name": "teacher", "label": "teacher", "bits": "32/32", "true_weight_bits": 32.0, "fid": 0.31,
         "feature_network": "digits_classifier", "feature_sha256": "ab", "heldout_loss": 0.2, "num_samples": 1024,
         "sampler": "ddim", "steps": 50, "eta": 0.0, "size_bytes": 3 * 2**20, "fp32_bytes": 3 * 2**20, "ops": 12e6,
         "images_per_second": 30.14, "seed": 0},
        {"name": "student", "label": "1-bit student", "bits": "1/4", "true_weight_bits": 1.125, "fid": 0.52,
         "feature_network": "digits_classifier", "feature_sha256": "ab", "heldout_loss": 0.21, "num_samples": 1024,
         "sampler": "ddim", "steps": 50, "eta": 0.0, "size_bytes": 240 * 2**10, "fp32_bytes": 3 * 2**20, "ops": 1.25e6,
         "images_per_second": 30.14, "seed": 0},
    ],
    "reference": {"fid": 0.2, "what": "half of the real images against the other half"},
    "environment": {"jax": "0.10.0", "command": "python -m binarydm_jax.main"},
}


def changed(**fields):
  """RESULTS with fields of the student replaced."""
  results = copy.deepcopy(RESULTS)
  results["models"][1].update(fields)
  return results


def page(tmp_path, results=RESULTS, curves=None, grids=None, diagnostics=None):
  report.write_report(tmp_path / "report.html", results, curves, grids, diagnostics)
  return (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("value, digits, text", [
    (0.5204, 3, "0.520"), (1234.5, 3, "1,234"), (12.345, 3, "12.3"), (0.1323, 4, "0.1323"), (0.0, 3, "0"),
    (2.5e-4, 3, "2.50e-04"), (None, 3, "-"), (float("nan"), 3, "nan"), (float("inf"), 3, "inf"), (-0.5, 3, "-0.500"),
])
def test_format_number(value, digits, text):
  assert report.format_number(value, digits) == text


def test_units():
  assert [report.format_bytes(n) for n in (512, 1536, 240 * 2**10, 3 * 2**20, 5 * 2**30)] == [
      "512 B", "1.50 KiB", "240 KiB", "3.00 MiB", "5.00 GiB"]
  assert [report.format_ops(n) for n in (7, 1.25e6, 96.018e9, None)] == ["7", "1.25 M", "96.0 G", "-"]


def test_table_rows_by_hand():
  assert report.table_rows(RESULTS) == [
      ["teacher", "32/32", "32.00", "0.310", "0.2000", "3.00 MiB", "1.0x", "12.0 M", "1.0x"],
      ["1-bit student", "1/4", "1.12", "0.520", "0.2100", "240 KiB", "12.8x", "1.25 M", "9.6x"],  # 3072/240, 12/1.25
  ]


def test_table_text_is_aligned_and_says_gain_and_loss():
  lines = report.format_table(RESULTS).split("\n")
  rule = next(i for i, line in enumerate(lines) if line.startswith("---"))
  assert {len(line) for line in lines[rule - 1 : rule + 3]} == {len(lines[rule])}
  assert len(lines[rule]) <= 100
  words = " ".join(lines[rule + 3 :])
  assert "1-bit student: 12.8x smaller (240 KiB instead of 3.00 MiB), 9.6x fewer operations." in words
  assert "Its Frechet distance is worse, 0.520 against the teacher's 0.310" in words
  assert "held-out loss is worse, 0.2100 against the teacher's 0.2000 (+5.0 %)" in words
  assert "features of digits_classifier" in words and "not comparable with published FID" in words
  assert "half of the real images against the other half gives 0.200" in words


@pytest.mark.parametrize("fields, words", [
    ({"fid": None}, "Frechet distance was not measured"),
    ({"fid": float("nan")}, "Frechet distance is not a finite number"),
    ({"fid": 0.25}, "Frechet distance is better, 0.250 against the teacher's 0.310"),
    ({"fid": 0.31}, "Frechet distance equals the teacher's, 0.310"),
    ({"feature_network": "inception"}, "cannot be compared with the teacher's"),
    ({"feature_sha256": "cd"}, "cannot be compared with the teacher's"),
    ({"heldout_loss": None}, "held-out loss was not measured"),
    ({"heldout_loss": 0.19}, "held-out loss is better, 0.1900 against the teacher's 0.2000 (-5.0 %)"),
    ({"size_bytes": 6 * 2**20}, "2.0x larger"),
    ({"ops": 24e6}, "2.0x more operations"),
    ({"ops": None, "size_bytes": None}, "neither size nor operations are known"),
    ({"num_samples": 64}, "numbers of samples differ"),
])
def test_words_are_honest(fields, words, tmp_path):
  results = changed(**fields)
  assert words in " ".join(report.format_table(results).split())
  assert words in re.sub(r"\s+", " ", page(tmp_path, results)).replace("&#x27;", "'")


def test_one_model_alone():
  for index in (0, 1):
    assert RESULTS["models"][index]["label"] in report.format_table(RESULTS | {"models": [RESULTS["models"][index]]})


def test_results_are_strict_json_and_leave_no_temporary(tmp_path):
  results = changed(fid=float("nan"), ops=np.float32("inf"), steps=np.int64(50), losses=np.array([1.0, np.nan]))
  report.write_results(tmp_path / "results.json", results)
  def refuse(constant):
    raise AssertionError(constant)
  student = json.loads((tmp_path / "results.json").read_text(), parse_constant=refuse)["models"][1]
  assert (student["fid"], student["ops"], student["steps"], student["losses"]) == (None, None, 50, [1.0, None])
  with pytest.raises(TypeError):
    report.write_results(tmp_path / "results.json", {"model": object()})
  assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


class _Checker(html.parser.HTMLParser):
  """Collects addresses, and fails where a tag closes another."""

  def __init__(self):
    super().__init__()
    self.open, self.links, self.tags = [], [], []

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.links += [value for name, value in attrs if name in ("src", "srcset", "href")]
    if tag not in ("meta", "img", "source"):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag


def test_page_is_whole_and_closed_in_itself(tmp_path):
  steps = np.arange(1, 101)
  curves = {"teacher": {"loss": (steps, 1 / steps)},
            "student": {"loss": (steps, 2 / steps), "simple": (steps, 1 / steps), "lrm": (steps, 1 / steps),
                        "learning_rate": (steps, 1e-3 / steps), "second_scale": (steps, np.linspace(1, 0, 100))}}
  digits = np.zeros((4, 8, 8, 1), np.uint8)
  photos = np.random.default_rng(0).integers(0, 256, (16, 256, 256, 3), np.uint8)
  text = page(tmp_path, curves=curves, grids={"real": digits, "student": digits, "packed": plots.image_grid(photos)},
              diagnostics={"Feature distance": {"mid": 0.25}})
  checker = _Checker()
  checker.feed(text)
  assert checker.open == [] and "script" not in checker.tags
  assert len(checker.links) == 3 + 2 * 4 and all(link.startswith("data:image/") for link in checker.links)
  for link in checker.links:
    Image.open(io.BytesIO(base64.b64decode(link.split(",")[1]))).verify()
  assert "http" not in text and "prefers-color-scheme" in text and len(text) < 1_500_000
  for words in ("Real images", "1-bit student", "Feature distance", "<dd>0.250</dd>", "python -m binarydm_jax.main"):
    assert words in text


def test_page_escapes_every_text(tmp_path):
  evil = '<b id="x">&'
  results = changed(label=evil, bits=evil, feature_network=evil, sampler=evil)
  results |= {"title": evil, "method": evil, "reference": {"fid": 1.0, "what": evil},
              "environment": {evil: evil, "command": evil}}
  text = page(tmp_path, results, grids={evil: np.zeros((1, 8, 8, 1), np.uint8)}, diagnostics={evil: {evil: evil}})
  assert evil not in text and "<b id" not in text and "&lt;b id=&quot;x&quot;&gt;&amp;" in text


def test_settings_are_given_for_each_model_where_they_differ(tmp_path):
  assert "<dt>Sampling steps</dt><dd>50</dd>" in page(tmp_path)
  assert "<dt>Sampling steps</dt><dd>teacher: 50; 1-bit student: 20</dd>" in page(tmp_path, changed(steps=20))


def test_image_grid_geometry():
  images = np.stack([np.full((8, 8, 1), 10 * (i + 1), np.uint8) for i in range(5)])
  grid = plots.image_grid(images)  # 3 columns, 2 rows; 8 -> 32 pixels, so 4 times.
  assert grid.mode == "L" and grid.size == (4 * (3 * 8 + 2), 4 * (2 * 8 + 1))
  pixels = np.asarray(grid)
  assert (pixels[:32, :32] == 10).all() and (pixels[36:, :32] == 40).all()
  assert (pixels[32:36] == plots.GAP_GREY).all() and (pixels[36:, 72:] == plots.GAP_GREY).all()


def test_image_grid_options_and_colour(tmp_path):
  images = np.random.default_rng(0).integers(0, 256, (6, 40, 50, 3), np.uint8)
  grid = plots.image_grid(images, columns=6, pad=0)
  assert grid.mode == "RGB" and grid.size == (300, 40)
  np.testing.assert_array_equal(np.asarray(grid)[:, 50:100], images[1])
  assert plots.image_grid(images, columns=2, scale=2, pad=3).size == (2 * 103, 2 * 126)
  plots.save_png(tmp_path / "new" / "grid.png", grid)
  np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new" / "grid.png")), np.asarray(grid))
  assert [path.name for path in (tmp_path / "new").iterdir()] == ["grid.png"]


@pytest.mark.parametrize("shape, dtype", [((1, 8, 8, 1), float), ((8, 8, 1), np.uint8), ((1, 8, 8, 2), np.uint8),
                                          ((0, 8, 8, 1), np.uint8)])
def test_image_grid_refuses_what_it_cannot_draw(shape, dtype):
  with pytest.raises(ValueError, match="uint8"):
    plots.image_grid(np.zeros(shape, dtype))


def test_captions_of_neighbours_do_not_touch():
  """Long ones are set smaller: between two pictures the line of the captions is white."""
  images = np.zeros((25, 16, 16, 3), np.uint8)
  canvas = np.asarray(plots.side_by_side({"binarydm_v1: 42.0 ± 1.9": images, "binarydm_v5: 71.6 ± 15.4": images}))
  middle = canvas.shape[1] // 2
  assert (canvas[:36, middle - 2 : middle + 2] == 255).all() and (canvas[:36] < 128).any()


def test_read_curves(tmp_path):
  (tmp_path / "metrics.jsonl").write_text("\n".join([
      '{"stage": "teacher", "step": 100, "loss": 0.5, "learning_rate": 1e-3}',
      '{"stage": "teacher", "step": 200, "loss": 0.4, "note": "text", "flag": true, "fid": null}',
      '{"stage": "teacher", "step": 3{"stage": "teacher", "step": 200, "loss": 0.3}',  # Torn, then resumed.
      '{"stage": "teacher", "step": 150, "loss": NaN}', "[1]", '{"step": 1, "loss": 1}',
      '{"stage": "student", "step": 10, "loss": 1, "lrm": 0.1}',
      '{"stage": "student", "step": 20, "loss": 2}', '{"stage": "student", "step": 20, "loss": 3}',
      '{"stage": "student", "step": 30, "lo']))
  curves = plots.read_curves(tmp_path / "metrics.jsonl")
  assert set(curves["teacher"]) == {"loss", "learning_rate"}
  np.testing.assert_array_equal(curves["teacher"]["loss"][0], [100, 150, 200])
  np.testing.assert_array_equal(curves["teacher"]["loss"][1], [0.5, np.nan, 0.4])
  np.testing.assert_array_equal(curves["student"]["loss"], ([10, 20], [1, 3]))
  np.testing.assert_array_equal(curves["student"]["lrm"], ([10], [0.1]))
  assert plots.read_curves(tmp_path / "absent.jsonl") == {}


def test_smooth():
  np.testing.assert_allclose(plots.smooth(np.array([1.0, 2.0, 6.0, np.nan, 4.0]), 3), [1.5, 3, 4, 5, 4])


@pytest.mark.parametrize("values", [[np.nan, np.inf], [0.5], [0.0, 0.0], [-1.0, 2.0], [1e-5] * 11 + [1e4], [1e-9] * 12])
def test_curves_of_any_kind_are_drawn(values):
  drawn = plots.curve_figures({"student": {"loss": (np.arange(len(values)), np.array(values)),
                                           "second_scale": (np.arange(len(values)), np.array(values))}})
  assert drawn.count("<img") == (3 if np.isfinite(values).any() else 0)


def test_metrics_are_called_by_their_network():
  """Inception's names belong to Inception's features; what was not measured is left out."""
  models = [{"label": "teacher", "feature_network": "inception", "fid": 3.0, "kid": 0.01, "kid_std": 0.002},
            {"label": "student", "feature_network": "inception", "fid": 7.0, "kid": None, "recall": 0.5}]  # fmt: skip
  assert report.metrics_list(models) == {
    "FID": "3.00 (teacher), 7.00 (student)", "KID": "0.0100 ± 0.00200 (teacher)", "Recall": "0.500 (student)"
  }
  for model in models:
    model["feature_network"] = "digits_classifier"
  assert list(report.metrics_list(models)) == ["Frechet distance", "Kernel distance (KID's formula)", "Recall"]

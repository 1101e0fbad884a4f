"""The report: strict JSON, and a page that is closed in itself and escapes what it is told."""

import base64
import html.parser
import io
import json

import numpy as np
import pytest
from PIL import Image

from binarydm_jax import panels, plots, report
from tests.test_summary import RESULTS, changed


def page(tmp_path, results=RESULTS, curves=None, grids=None, diagnostics=None):
  report.write_report(tmp_path / "report.html", results, curves, grids, diagnostics)
  return (tmp_path / "report.html").read_text(encoding="utf-8")


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
  assert panels.THEMES["light"].keys() == panels.THEMES["dark"].keys()  # what can be drawn on one can on the other
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

"""The plots of what binarization does: each is there if its data is, with words, and no value makes it fall over."""

import json
import re

import numpy as np
import pytest

from binarydm_jax import diagnostic_plots, panels, report
from tests.drawn_once import drawn_once
from tests.test_summary import RESULTS

DISTANCE = {"blocks": ["input_0", "middle", "output_0"], "distance": [1.0, 2.0, 3.0], "teacher_norm": [10.0, 4.0, 3.0],
            "relative": [0.1, 0.5, 1.0], "images": 128, "timesteps": [100, 500, 900]}
LOSS = {"first_timestep": list(range(0, 1000, 100)), "teacher": [0.1] * 10, "student": [0.12] * 9 + [None]}


def row(step, scale2=0.5):
  return {
      "stage": "student", "step": step,
      "flips_per_1000_steps": {"all": 0.2, "encoder": 0.1, "middle": 0.3} if step else {},
      "histograms": {"limit": 3.05, "counts": {"one basis": [0, 5, 0, 5, 0], "two bases": [1, 2, 0, 2, 1]}},
      "activation_steps": {"encoder": {"input_0/conv/step": 0.1 + 0.01 * step}, "middle": {"middle/qk/step_a": 0.2}},
      "scale1": {"input_0/conv": 0.3}, "scale2": {"input_0/conv": scale2}, "weight_step": {},
  }


def titles(results, rows):
  return re.findall("<figcaption>([^<]*)<", diagnostic_plots.figures(results, rows))


@pytest.fixture
def undrawn(monkeypatch):
  """Leaves the pixels out: each panel takes a quarter of a second."""
  monkeypatch.setattr(panels, "draw_panel", lambda draw, theme: b"")


def test_each_plot_needs_only_its_own_data(undrawn):
  rows = [row(0), row(10), row(20, scale2=0.0)]
  everything = titles({"block_distance": DISTANCE, "loss_by_timestep": LOSS}, rows)
  assert len(everything) == 8
  assert titles({"block_distance": DISTANCE}, []) == everything[:2]
  assert titles({"loss_by_timestep": LOSS}, []) == everything[2:3]
  assert titles({}, rows) == everything[3:]
  assert titles({}, rows[:1]) == everything[3:5]  # nothing has happened yet
  assert diagnostic_plots.figures({}, []) == ""


@pytest.mark.parametrize("change", [
    {"flips_per_1000_steps": {}}, {"activation_steps": {}}, {"scale1": {}, "scale2": {}}, {"histograms": {"counts": {}}}
])
def test_networks_without_a_part(undrawn, change):
  """Full-precision activations have no steps, LSQ weights no signs."""
  assert 0 < len(titles({}, [row(0) | change, row(10) | change])) < 5


def test_values_that_cannot_be_drawn():
  """None, as JSON has it for what is not finite, and zeros leave gaps."""
  distance = DISTANCE | {"distance": [None, 0.0, 1.0], "relative": [None, 0.0, 0.3]}
  nothing = {name: [None] * 10 for name in ("teacher", "student")}
  with drawn_once():
    assert len(titles({"block_distance": distance}, [])) == 2
    assert len(titles({"loss_by_timestep": LOSS | nothing}, [row(0, 0.0), row(1, -1.0)])) == 6


def test_trajectories_are_relative_to_their_start():
  lines = diagnostic_plots._trajectories([{"a": 2.0, "b": 1.0}, {"a": 1.0, "b": 0.0}, {"a": 4.0}])
  np.testing.assert_array_equal(lines, [[1, 0.5, 2], [1, np.nan, np.nan]])


def test_rows_are_read_past_torn_lines(tmp_path):
  path = tmp_path / "diagnostics.jsonl"
  path.write_text("\n".join([json.dumps(row(10)), '{"step": 1{"step"', "[1]", json.dumps(row(0)),
                             json.dumps(row(10, 0.7)), '{"stage": "stu']))
  rows = diagnostic_plots.read_rows(path)
  assert [r["step"] for r in rows] == [0, 10] and rows[1]["scale2"] == {"input_0/conv": 0.7}
  assert diagnostic_plots.read_rows(tmp_path / "absent") == []


def test_the_page_shows_them_with_captions(undrawn, tmp_path):
  results = RESULTS | {"block_distance": DISTANCE, "loss_by_timestep": LOSS}
  report.write_report(tmp_path / "report.html", results, {}, {}, None, [row(0), row(10)])
  page = (tmp_path / "report.html").read_text()
  section = page[page.index("What binarization does to the network") :]
  assert section.count("<picture>") == 8
  assert "128 held-out images at timesteps 100, 500, 900" in section and "Look where the student" in section

"""Grids, curves and captions, by their pixels; any numbers are drawn."""

import numpy as np
import pytest
from PIL import Image

from binarydm_jax import plots


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

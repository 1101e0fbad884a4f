"""Panels of the report are drawn for light pages alone where a test looks at neither; test_report has both."""

from unittest import mock

from binarydm_jax import panels


def drawn_once():
  """A patch: what was drawn for light pages also stands on dark ones."""
  known, real = {}, panels.draw_panel

  def draw_panel(draw, theme, *size):
    if draw not in known:
      known[draw] = real(draw, theme, *size)
    return known[draw]

  return mock.patch.object(panels, "draw_panel", draw_panel)

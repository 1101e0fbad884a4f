"""Shared by the tests of studies: pictures are drawn where a test looks at them."""

import pytest

from binarydm_jax import panels


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch):
  """Leaves the pixels out elsewhere: four pictures for each table would be most of the time."""
  if request.path.name not in ("test_study_figures.py", "test_study_results.py"):
    monkeypatch.setattr(panels, "draw_panel", lambda draw, theme, size=None: b"")

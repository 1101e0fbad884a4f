"""Numbers as they are shown, by hand."""

import pytest

from binarydm_jax import formats


@pytest.mark.parametrize("value, digits, text", [
    (0.5204, 3, "0.520"), (1234.5, 3, "1,234"), (12.345, 3, "12.3"), (0.1323, 4, "0.1323"), (0.0, 3, "0"),
    (2.5e-4, 3, "2.50e-04"), (None, 3, "-"), (float("nan"), 3, "nan"), (float("inf"), 3, "inf"), (-0.5, 3, "-0.500"),
])
def test_format_number(value, digits, text):
  assert formats.format_number(value, digits) == text


def test_units():
  assert [formats.format_bytes(n) for n in (512, 1536, 240 * 2**10, 3 * 2**20, 5 * 2**30)] == [
      "512 B", "1.50 KiB", "240 KiB", "3.00 MiB", "5.00 GiB"]
  assert [formats.format_ops(n) for n in (7, 1.25e6, 96.018e9, None)] == ["7", "1.25 M", "96.0 G", "-"]


@pytest.mark.parametrize("times, text", [(1.94, "1.9x"), (123.4, "123x"), (0.312, "0.31x"), (None, "-")])
def test_times(times, text):
  assert formats.format_times(times) == text


def test_ratio():
  """Of what is known and not zero."""
  assert formats.ratio(3, 2) == 1.5
  assert [formats.ratio(*pair) for pair in ((None, 1), (1, None), (1, 0), (float("inf"), 1))] == [None] * 4

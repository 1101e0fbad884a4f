"""Numbers as a table, a report and a terminal show them; None and what is not finite included."""

import math


def format_number(value, digits=3):
  """1234.5 -> "1,234", 0.5204 -> "0.520"; None -> "-", not a number -> "nan"."""
  if value is None:
    return "-"
  if not math.isfinite(value) or value == 0:
    return f"{value:g}"
  if abs(value) < 1e-3:
    return f"{value:.{digits - 1}e}"
  return f"{value:,.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def _format_unit(value, units, base):
  """(2048, ("B", "KiB"), 1024) -> "2.00 KiB"."""
  if not known(value):
    return format_number(value)
  power = 0
  while value >= base and power < len(units) - 1:
    value, power = value / base, power + 1
  return f"{format_number(value) if power else f'{value:g}'} {units[power]}".rstrip()


def format_bytes(value):
  """1536 -> "1.50 KiB"."""
  return _format_unit(value, ("B", "KiB", "MiB", "GiB"), 1024)


def format_ops(value):
  """1.25e6 -> "1.25 M"."""
  return _format_unit(value, ("", "k", "M", "G", "T"), 1000)


def known(*values):
  """Whether all are there and finite."""
  return all(value is not None and math.isfinite(value) for value in values)


def ratio(large, small):
  """None where one is unknown or the smaller is zero."""
  return large / small if known(large, small) and small > 0 else None


def format_times(times):
  """1.94 -> "1.9x", 123.4 -> "123x", 0.312 -> "0.31x"; None -> "-"."""
  if times is None:
    return "-"
  return f"{times:.2g}x" if times < 1 else f"{times:.{1 if times < 100 else 0}f}x"

"""What a run achieved: `results.json`, and one self-contained HTML page; its words and its table are of summary.py.

`results` is `{"title", "method", "models": [{"name", "label", "bits", "fid", ...}], "reference", "environment"}`. The
others are measured against the model named "teacher". Any number may be absent, None or not finite.
"""

import html
import json
import math
import string

import numpy as np

from binarydm_jax import diagnostic_plots, plots, summary
from binarydm_jax.files import write_atomically
from binarydm_jax.formats import format_bytes, format_number, format_ops

GRID_CAPTIONS = {"real": "Real images", "packed": "Packed: the student stored as bits"}
SETTINGS = (("feature_network", "Feature network"), ("feature_sha256", "Its SHA-256"), ("num_samples", "Samples"),
            ("sampler", "Sampler"), ("steps", "Sampling steps"), ("spacing", "Spacing of timesteps"), ("eta", "eta"),
            ("clip", "x0 clipped"), ("dynamic_threshold", "Dynamic threshold"), ("guidance", "Guidance"),
            ("labels", "Classes"), ("image_conversion", "To uint8"), ("seed", "Seed of sampling"),
            ("num_reference", "Real images"), ("kid_subset_size", "Images a subset of the kernel distance"),
            ("images_per_second", "Images a second (dequantized, in float)"))


def _plain(value):
  """numpy scalars and arrays -> Python's; not-finite numbers -> None, for which JSON has a word."""
  if isinstance(value, dict):
    return {str(key): _plain(entry) for key, entry in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain(entry) for entry in value]
  if isinstance(value, (np.generic, np.ndarray)):
    return _plain(value.tolist())
  return None if isinstance(value, float) and not math.isfinite(value) else value


def write_results(path, results):
  """Writes strict JSON (NaN and infinities as null) under a temporary name, then renames."""
  write_atomically(path, (json.dumps(_plain(results), indent=2, allow_nan=False) + "\n").encode())


_PAGE = string.Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title><style>
$style</style></head><body><main>
<p class="method">$method</p><h1>$title</h1>
$words
<div class="tiles">$tiles</div>
$sections
</main></body></html>
""")


def write_report(path, results, curves, grids, diagnostics=None, recorded=()):
  """Writes one HTML page that needs nothing else: no network, no script, no other file.

  Args:
    path: file to write.
    results: as in `write_results`.
    curves: as from `read_curves`.
    grids: {name: PIL image or uint8 [n, H, W, C]}, shown side by side in this order. A name of "real", "packed" or of
      a model gets a caption; any other is its own caption.
    diagnostics: None or {heading: {label: number or text}}, each shown as a list.
    recorded: as from `diagnostic_plots.read_rows`.
  """
  text = lambda value: html.escape(str(value))
  rows = "".join(_html_row(row) for row in summary.table_rows(results))
  heads = "".join(f"<th scope=\"col\">{text(column)}</th>" for column in summary.COLUMNS)
  table = f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
  captions = GRID_CAPTIONS | {model.get("name"): summary.label(model) for model in results["models"]}
  environment = dict(results.get("environment") or {})
  command = environment.pop("command", None)
  parts = [
      ("Results", table + "".join(f'<p class="note">{text(note)}</p>' for note in summary.notes(results))),
      ("Samples", plots.grid_figures(grids or {}, captions)),
      ("Training", plots.curve_figures(curves or {})),
      ("What binarization does to the network", diagnostic_plots.figures(results, recorded)),
      *((heading, _list_html(entries)) for heading, entries in (diagnostics or {}).items()),
      ("How it was measured", _list_html(_settings(results["models"]))),
      ("Environment", _list_html(environment) + (f"<pre>{text(command)}</pre>" if command else "")),
  ]
  page = _PAGE.substitute(
      title=text(results["title"]), method=text(results.get("method", "")), style=plots.page_style(),
      tiles=_tiles_html(results),
      words="".join(f"<p>{text(line)}</p>" for line in summary.verdict(results)),
      sections="\n".join(f"<section><h2>{text(heading)}</h2>{body}</section>" for heading, body in parts if body))
  write_atomically(path, page.encode())


def _html_row(row):
  cells = "".join(f'<td data-label="{name}">{html.escape(cell)}</td>'.replace("\n", " ")
                  for name, cell in zip(summary.COLUMNS[1:], row[1:], strict=True))
  return f'<tr><th scope="row">{html.escape(row[0])}</th>{cells}</tr>'


def _tiles_html(results):
  """The four numbers that a hurried reader wants, of the first model that is not the teacher."""
  teacher = summary.teacher_of(results)
  model = next((model for model in results["models"] if model is not teacher), None)
  if model is None:
    return ""
  smaller, fewer = summary.ratios(model, teacher)
  tiles = []
  if smaller:
    number, word = summary.change(smaller, "smaller", "larger").split()
    sizes = f"{format_bytes(model['size_bytes'])} instead of {format_bytes(summary.full_bytes(model, teacher))}"
    tiles.append((number, f"{word} to store", sizes))
  if fewer:
    number, word = summary.change(fewer, "fewer", "more").split()
    tiles.append((number, f"{word} operations", f"{format_ops(model['ops'])} instead of {format_ops(teacher['ops'])}"))
  for key, noun, digits in (("fid", "Frechet distance", 3), ("heldout_loss", "held-out loss", 4)):
    tiles.append((format_number(model.get(key), digits), noun, f"teacher: {format_number(teacher.get(key), digits)}"))
  return "".join(f'<div class="tile"><b>{number.replace("x", "×")}</b><span>{words}</span><span>{more}</span></div>'
                 for number, words, more in tiles)


def _settings(models):
  """{what: its value; where models differ, the value of each}."""
  settings = {}
  for key, name in SETTINGS:
    values = {summary.label(model): _cell(model.get(key)) for model in models}
    if set(values.values()) == {"-"}:
      continue
    is_shared = len(set(values.values())) == 1
    settings[name] = next(iter(values.values())) if is_shared else "; ".join(map(": ".join, values.items()))
  return settings


def _cell(value):
  return format_number(value) if value is None or isinstance(value, float) else str(value)


def _list_html(entries):
  items = (f"<dt>{html.escape(str(name))}</dt><dd>{html.escape(_cell(value))}</dd>" for name, value in entries.items())
  return f"<dl>{''.join(items)}</dl>" if entries else ""

"""What a run achieved: a table for the terminal, `results.json`, and one self-contained HTML page.

`results` is `{"title", "method", "models": [{"name", "label", "bits", "fid", ...}], "reference", "environment"}`. The
others are measured against the model named "teacher". Any number may be absent, None or not finite.
"""

import html
import json
import math
import string
import textwrap

import numpy as np

from binarydm_jax import diagnostic_plots, plots
from binarydm_jax.files import write_atomically

COLUMNS = ("Model", "Bits\nW/A", "True bits\na weight", "Frechet\ndistance", "Held-out\nloss", "Size", "Times\nsmaller",
           "Operations", "Times\nfewer")
GRID_CAPTIONS = {"real": "Real images", "packed": "Packed: the student stored as bits"}
SETTINGS = (("feature_network", "Feature network"), ("feature_sha256", "Its SHA-256"), ("num_samples", "Samples"),
            ("sampler", "Sampler"), ("steps", "Sampling steps"), ("spacing", "Spacing of timesteps"), ("eta", "eta"),
            ("clip", "x0 clipped"), ("dynamic_threshold", "Dynamic threshold"), ("guidance", "Guidance"),
            ("labels", "Classes"), ("image_conversion", "To uint8"), ("seed", "Seed"), ("num_reference", "Real images"),
            ("kid_subset_size", "Images a subset of the kernel distance"), ("images_per_second", "Images a second"))
# Names of Inception's metrics, and of the same formulas on other features.
METRICS = (("fid", "FID", "Frechet distance"), ("sfid", "sFID", "Frechet distance of spatial features"),
           ("kid", "KID", "Kernel distance (KID's formula)"),
           ("inception_score", "Inception Score", "Classifier's score (Inception Score's formula)"),
           ("precision", "Precision", "Precision"), ("recall", "Recall", "Recall"))


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
  if not _known(value):
    return format_number(value)
  power = 0
  while value >= base and power < len(units) - 1:
    value, power = value / base, power + 1
  return f"{format_number(value) if power else f'{value:g}'} {units[power]}".rstrip()


def format_bytes(value):
  return _format_unit(value, ("B", "KiB", "MiB", "GiB"), 1024)


def format_ops(value):
  return _format_unit(value, ("", "k", "M", "G", "T"), 1000)


def _known(*values):
  return all(value is not None and math.isfinite(value) for value in values)


def _ratio(large, small):
  return large / small if _known(large, small) and small > 0 else None


def _times(ratio):
  if ratio is None:
    return "-"
  return f"{ratio:.2g}x" if ratio < 1 else f"{ratio:.{1 if ratio < 100 else 0}f}x"


def _teacher(results):
  return next((model for model in results["models"] if model.get("name") == "teacher"), {})


def _label(model):
  return str(model.get("label") or model.get("name"))


def _full_bytes(model, teacher):
  return model.get("fp32_bytes") or teacher.get("size_bytes")


def _ratios(model, teacher):
  """(times smaller than in float32, times fewer operations than the teacher), each a number or None."""
  return (_ratio(_full_bytes(model, teacher), model.get("size_bytes")), _ratio(teacher.get("ops"), model.get("ops")))


def table_rows(results):
  """results -> list of rows of cell texts, in the order of COLUMNS."""
  rows = []
  for model in results["models"]:
    smaller, fewer = _ratios(model, _teacher(results))
    true_bits = model.get("true_weight_bits")
    rows.append([_label(model), str(model.get("bits") or "-"), f"{true_bits:.2f}" if _known(true_bits) else "-",
                 format_number(model.get("fid")), format_number(model.get("heldout_loss"), 4),
                 format_bytes(model.get("size_bytes")), _times(smaller), format_ops(model.get("ops")), _times(fewer)])
  return rows


def format_table(results):
  """results -> the table in plain text, then what was gained and what was lost, in words."""
  heads = [column.split("\n") for column in COLUMNS]
  cells = [[head[0] if len(head) == 2 else "" for head in heads], [head[-1] for head in heads], *table_rows(results)]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in cells]
  lines.insert(2, "  ".join("-" * width for width in widths))
  wrap = textwrap.TextWrapper(max(80, len(lines[2])), break_on_hyphens=False)
  words = map(wrap.fill, verdict(results) + _notes(results))
  return "\n".join([str(results["title"]), "", *(line.rstrip() for line in lines), "", *words])


def _change(ratio, gain, loss):
  return f"{_times(ratio)} {gain}" if ratio >= 1 else f"{_times(1 / ratio)} {loss}"


def _compare(noun, model, teacher, key, digits, more=""):
  """One quality of a model against the teacher's, lower being better, as a clause."""
  value, base = model.get(key), teacher.get(key)
  if value is None:
    return f"its {noun} was not measured"
  if not _known(value):
    return f"its {noun} is not a finite number, so training or sampling has diverged"
  text, base_text = format_number(value, digits), format_number(base, digits)
  if not _known(base):
    return f"its {noun} is {text}, with no finite value of the teacher to set it against"
  if text == base_text:
    return f"its {noun} equals the teacher's, {text}"
  return f"its {noun} is {'worse' if value > base else 'better'}, {text} against the teacher's {base_text}{more}"


def verdict(results):
  """results -> sentences, for each model but the teacher: what it saves, then what it costs in quality."""
  teacher, lines = _teacher(results), []
  for model in results["models"]:
    if model is teacher:
      continue
    smaller, fewer = _ratios(model, teacher)
    cost = []
    if smaller:
      full = format_bytes(_full_bytes(model, teacher))
      cost.append(f"{_change(smaller, 'smaller', 'larger')} ({format_bytes(model['size_bytes'])} instead of {full})")
    if fewer:
      cost.append(f"{_change(fewer, 'fewer', 'more')} operations")
    lines.append(f"{_label(model)}: {', '.join(cost) or 'neither size nor operations are known'}.")
    networks = {(entry.get("feature_network"), entry.get("feature_sha256")) for entry in (model, teacher)}
    if len(networks) > 1 and _known(model.get("fid"), teacher.get("fid")):
      quality = (f"its Frechet distance, {format_number(model['fid'])}, cannot be compared with the teacher's: "
                 "another feature network")
    else:
      quality = _compare("Frechet distance", model, teacher, "fid", 3)
    value, base = model.get("heldout_loss"), teacher.get("heldout_loss")
    percent = f" ({100 * (value / base - 1):+.1f} %)" if _known(value, base) and base > 0 else ""
    quality += "; " + _compare("held-out loss", model, teacher, "heldout_loss", 4, percent)
    lines.append(quality[0].upper() + quality[1:] + ".")
  return lines


def _notes(results):
  """What a reader has to know before comparing the distances with anything."""
  measured = [model for model in results["models"] if model.get("fid") is not None]
  networks = sorted({str(model.get("feature_network")) for model in measured})
  notes = []
  if networks:
    note = f"Frechet distance: features of {', '.join(networks)}; lower is better"
    is_standard = all("inception" in network.lower() for network in networks)
    notes.append(note + ("." if is_standard else "; not comparable with published FID, which uses Inception features."))
  if len({model.get("num_samples") for model in measured}) > 1:
    notes.append("The numbers of samples differ between models; fewer samples make the distance larger.")
  reference = results.get("reference") or {}
  if reference.get("fid") is not None:
    notes.append(f"For scale: {reference.get('what', 'the reference')} gives {format_number(reference['fid'])}.")
  return notes


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
  rows = "".join(_html_row(row) for row in table_rows(results))
  heads = "".join(f"<th scope=\"col\">{text(column)}</th>" for column in COLUMNS)
  table = f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
  captions = GRID_CAPTIONS | {model.get("name"): _label(model) for model in results["models"]}
  environment = dict(results.get("environment") or {})
  command = environment.pop("command", None)
  parts = [
      ("Results", table + "".join(f'<p class="note">{text(note)}</p>' for note in _notes(results))),
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
      words="".join(f"<p>{text(line)}</p>" for line in verdict(results)),
      sections="\n".join(f"<section><h2>{text(heading)}</h2>{body}</section>" for heading, body in parts if body))
  write_atomically(path, page.encode())


def _html_row(row):
  cells = "".join(f'<td data-label="{name}">{html.escape(cell)}</td>'.replace("\n", " ")
                  for name, cell in zip(COLUMNS[1:], row[1:], strict=True))
  return f'<tr><th scope="row">{html.escape(row[0])}</th>{cells}</tr>'


def _tiles_html(results):
  """The four numbers that a hurried reader wants, of the first model that is not the teacher."""
  teacher = _teacher(results)
  model = next((model for model in results["models"] if model is not teacher), None)
  if model is None:
    return ""
  smaller, fewer = _ratios(model, teacher)
  tiles = []
  if smaller:
    number, word = _change(smaller, "smaller", "larger").split()
    sizes = f"{format_bytes(model['size_bytes'])} instead of {format_bytes(_full_bytes(model, teacher))}"
    tiles.append((number, f"{word} to store", sizes))
  if fewer:
    number, word = _change(fewer, "fewer", "more").split()
    tiles.append((number, f"{word} operations", f"{format_ops(model['ops'])} instead of {format_ops(teacher['ops'])}"))
  for key, noun, digits in (("fid", "Frechet distance", 3), ("heldout_loss", "held-out loss", 4)):
    tiles.append((format_number(model.get(key), digits), noun, f"teacher: {format_number(teacher.get(key), digits)}"))
  return "".join(f'<div class="tile"><b>{number.replace("x", "×")}</b><span>{words}</span><span>{more}</span></div>'
                 for number, words, more in tiles)


def metrics_list(models):
  """{name of a metric: "value (model), value (model)"} of those that were measured, with their spread where known."""
  entries = {}
  for key, inception, other in METRICS:
    measured = [model for model in models if model.get(key) is not None]
    if not measured:
      continue
    values = []
    for model in measured:
      spread = model.get(f"{key}_std")
      more = f" ± {format_number(spread)}" if spread else ""
      values.append(f"{format_number(model[key])}{more} ({_label(model)})")
    entries[inception if measured[0].get("feature_network") == "inception" else other] = ", ".join(values)
  return entries


def _settings(models):
  """{what: its value; where models differ, the value of each}."""
  settings = {}
  for key, name in SETTINGS:
    values = {_label(model): _cell(model.get(key)) for model in models}
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

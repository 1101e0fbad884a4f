"""What a run achieved, in words: a table in plain text, what is gained and what is lost, what must be known to compare.

`results` is as in report.py. Models are measured against the one named "teacher".
"""

import textwrap

from binarydm_jax.formats import format_bytes, format_number, format_ops, format_times, known, ratio

COLUMNS = ("Model", "Bits\nW/A", "True bits\na weight", "Frechet\ndistance", "Held-out\nloss", "Size", "Times\nsmaller",
           "Operations", "Times\nfewer")
# Names of Inception's metrics, and of the same formulas on other features.
METRICS = (("fid", "FID", "Frechet distance"), ("sfid", "sFID", "Frechet distance of spatial features"),
           ("kid", "KID", "Kernel distance (KID's formula)"),
           ("inception_score", "Inception Score", "Classifier's score (Inception Score's formula)"),
           ("precision", "Precision", "Precision"), ("recall", "Recall", "Recall"))


def teacher_of(results):
  """The model that the others are measured against; {} where there is none."""
  return next((model for model in results["models"] if model.get("name") == "teacher"), {})


def label(model):
  """What readers call it."""
  return str(model.get("label") or model.get("name"))


def full_bytes(model, teacher):
  """The size that a model would have in float32; None if nobody knows."""
  return model.get("fp32_bytes") or teacher.get("size_bytes")


def ratios(model, teacher):
  """(times smaller than in float32, times fewer operations than the teacher), each a number or None."""
  return (ratio(full_bytes(model, teacher), model.get("size_bytes")), ratio(teacher.get("ops"), model.get("ops")))


def table_rows(results):
  """results -> list of rows of cell texts, in the order of COLUMNS."""
  rows = []
  for model in results["models"]:
    smaller, fewer = ratios(model, teacher_of(results))
    true_bits = model.get("true_weight_bits")
    rows.append([label(model), str(model.get("bits") or "-"), f"{true_bits:.2f}" if known(true_bits) else "-",
                 format_number(model.get("fid")), format_number(model.get("heldout_loss"), 4),
                 format_bytes(model.get("size_bytes")), format_times(smaller),
                 format_ops(model.get("ops")), format_times(fewer)])  # fmt: skip
  return rows


def format_table(results):
  """results -> the table in plain text, then what was gained and what was lost, in words."""
  heads = [column.split("\n") for column in COLUMNS]
  cells = [[head[0] if len(head) == 2 else "" for head in heads], [head[-1] for head in heads], *table_rows(results)]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in cells]
  lines.insert(2, "  ".join("-" * width for width in widths))
  wrap = textwrap.TextWrapper(max(80, len(lines[2])), break_on_hyphens=False)
  words = map(wrap.fill, verdict(results) + notes(results))
  return "\n".join([str(results["title"]), "", *(line.rstrip() for line in lines), "", *words])


def change(times, gain, loss):
  """(0.5, "smaller", "larger") -> "2.0x larger"."""
  return f"{format_times(times)} {gain}" if times >= 1 else f"{format_times(1 / times)} {loss}"


def _compare(noun, model, teacher, key, digits, more=""):
  """One quality of a model against the teacher's, lower being better, as a clause."""
  value, base = model.get(key), teacher.get(key)
  if value is None:
    return f"its {noun} was not measured"
  if not known(value):
    return f"its {noun} is not a finite number, so training or sampling has diverged"
  text, base_text = format_number(value, digits), format_number(base, digits)
  if not known(base):
    return f"its {noun} is {text}, with no finite value of the teacher to set it against"
  if text == base_text:
    return f"its {noun} is the teacher's to the digits shown, {text}"
  return f"its {noun} is {'worse' if value > base else 'better'}, {text} against the teacher's {base_text}{more}"


def verdict(results):
  """results -> sentences, for each model but the teacher: what it saves, then what it costs in quality."""
  teacher, lines = teacher_of(results), []
  for model in results["models"]:
    if model is teacher:
      continue
    smaller, fewer = ratios(model, teacher)
    cost = []
    if smaller:
      full = format_bytes(full_bytes(model, teacher))
      cost.append(f"{change(smaller, 'smaller', 'larger')} ({format_bytes(model['size_bytes'])} instead of {full})")
    if fewer:
      cost.append(f"{change(fewer, 'fewer', 'more')} operations")
    lines.append(f"{label(model)}: {', '.join(cost) or 'neither size nor operations are known'}.")
    networks = {(entry.get("feature_network"), entry.get("feature_sha256")) for entry in (model, teacher)}
    if len(networks) > 1 and known(model.get("fid"), teacher.get("fid")):
      quality = (f"its Frechet distance, {format_number(model['fid'])}, cannot be compared with the teacher's: "
                 "another feature network")
    else:
      quality = _compare("Frechet distance", model, teacher, "fid", 3)
    value, base = model.get("heldout_loss"), teacher.get("heldout_loss")
    percent = f" ({100 * (value / base - 1):+.1f} %)" if known(value, base) and base > 0 else ""
    quality += "; " + _compare("held-out loss", model, teacher, "heldout_loss", 4, percent)
    lines.append(quality[0].upper() + quality[1:] + ".")
  return lines


def notes(results):
  """What a reader has to know before comparing the distances with anything."""
  measured = [model for model in results["models"] if model.get("fid") is not None]
  networks = sorted({str(model.get("feature_network")) for model in measured})
  found = []
  if networks:
    note = f"Frechet distance: features of {', '.join(networks)}; lower is better"
    is_standard = all("inception" in network.lower() for network in networks)
    found.append(note + ("." if is_standard else "; not comparable with published FID, which uses Inception features."))
  if len({model.get("num_samples") for model in measured}) > 1:
    found.append("The numbers of samples differ between models; fewer samples make the distance larger.")
  reference = results.get("reference") or {}
  if reference.get("fid") is not None:
    found.append(f"For scale: {reference.get('what', 'the reference')} gives {format_number(reference['fid'])}.")
  return found


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
      values.append(f"{format_number(model[key])}{more} ({label(model)})")
    entries[inception if measured[0].get("feature_network") == "inception" else other] = ", ".join(values)
  return entries

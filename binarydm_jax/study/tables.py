"""What a study shows: results.csv (a line for each run), results.json (a summary of each row), table.md and plots."""

import csv
import io
import json
from pathlib import Path

from binarydm_jax.compare import real_images, spread
from binarydm_jax.files import write_atomically
from binarydm_jax.formats import format_bytes, format_ops
from binarydm_jax.study import figures, merging
from binarydm_jax.study import results as results_lib
from binarydm_jax.study.rows import CEILING, FLOOR, GROUPS, ROWS

# (head, metric); a metric that no row has gets no column.
METRICS = (
    ("Frechet distance", "fid"), ("share of its gap closed", "gap_closed_fid"), ("kernel distance (KID)", "kid"),
    ("precision", "precision"), ("recall", "recall"), ("held-out loss", "heldout_loss"),
    ("share of its gap closed", "gap_closed_heldout_loss"), ("training seconds", "training_seconds"),
)  # fmt: skip


def write(folder, added=()):
  """Writes results.csv, results.json, table.md and plots/*.png from the finished runs in `folder`.

  Args:
    added: paths of the results.json of other studies, whose runs stand in all of them but for curves and samples. With
      them the folder itself may be empty.
  Returns:
    (summaries, path of the table).
  Raises:
    ValueError: see `results.collect` and `merging`.
  """
  folder = Path(folder)
  about, records = read_all(folder, added)
  summaries = results_lib.summarize(records)
  folder.mkdir(parents=True, exist_ok=True)
  write_atomically(folder / "results.csv", to_csv(records).encode())
  content = json.dumps(dict(about=about, rows=summaries, records=records), indent=2) + "\n"
  write_atomically(folder / "results.json", content.encode())
  pictures = [path.relative_to(folder) for path in figures.write(folder, summaries)]
  write_atomically(folder / "table.md", to_markdown(summaries, about, pictures).encode())
  return summaries, folder / "table.md"


def read_all(folder, added=(), without=()):
  """(about, records) of the finished runs in `folder` and of `added`, as one study.

  Args and errors: those of `write`; `without` as in `results.finished_runs`.
  """
  studies = {str(path): merging.read(Path(path)) for path in added}
  if not studies or any(results_lib.finished_runs(folder, without=without)):
    records, found, teachers, fields = results_lib.collect(folder, without=without)
    about = describe(records, found, results_lib.read_attempts(folder), teachers, fields)
    studies = {str(folder): (about, records), **studies}
  return merging.merge(studies)


def to_csv(records):
  """A line for each record, under their keys."""
  buffer = io.StringIO()
  writer = csv.DictWriter(buffer, list(records[0]), lineterminator="\n")
  writer.writeheader()
  writer.writerows(records)
  return buffer.getvalue()


def describe(records, found, attempts, teachers, fields):
  """{name: value}: how it was measured, on what, from which teachers, by which commands, how long it took."""
  first = records[-1]
  reference = found[0].get("reference") or {}
  return dict(
      title=found[0]["title"],
      protocol={key: first[key] for key in results_lib.PROTOCOL},
      reference={key: reference.get(key) for key in ("what", "fid")},
      images=_images(found),
      settings=_common_settings(records),
      teachers=teachers,
      fields=fields,
      training_steps=sorted({record["training_steps"] for record in records if record["row"] != results_lib.TEACHER}),
      hardware=sorted({_hardware(result["environment"]) for result in found}),
      versions=sorted({f"jax {r['environment']['jax']}, Python {r['environment']['python']}" for r in found}),
      commands=list(dict.fromkeys(attempt["study"] for attempt in attempts)),
      wall_seconds=results_lib.wall_seconds(attempts),
      processes=len(attempts),
  )  # fmt: skip


def _images(found):
  """{"real", "held-out"}: what the figures were measured against, as the first run has it that says so."""
  real = (real_images(result) for result in found)
  heldout = (result.get("heldout") for result in found)
  first = {"real": next(filter(None, real), None), "held-out": next(filter(None, heldout), None)}
  return {name: value for name, value in first.items() if value}


def _hardware(environment):
  """In words; a run of before does not say its processor."""
  return ", ".join(environment[name] for name in ("processor", "devices") if name in environment)


def _common_settings(records):
  """{field: value} of SETTINGS, as all rows have it that do not set it themselves."""
  own = {row.name: row.overrides for row in ROWS}
  students = [record for record in records if record["row"] in own]
  return {name: record[name] for record in students for name in results_lib.SETTINGS if name not in own[record["row"]]}


def to_markdown(summaries, about, pictures=()):
  """A table for each group of rows, the pictures, then how it was measured.

  pictures: their paths from the table's folder.
  """
  metrics = [(head, name) for head, name in METRICS if any(row["metrics"][name] for row in summaries)]
  heads = ["model", "bits W/A", "true bits a weight", "size", "operations", "seeds", *(head for head, _ in metrics)]
  lines = [f"# {about['title']}: methods by equal budgets"]
  for group, title in GROUPS.items():
    rows = [row for row in summaries if row["group"] == group]
    if rows:
      lines += ["", f"## {title}", "", _line(heads), _line(["---"] * len(heads))]
      lines += [_line(_cells(row, metrics)) for row in rows]
  lines += [part for path in pictures for part in ("", f"![{path.stem}]({path.as_posix()})")]
  return "\n".join([*lines, "", "## How it was measured", "", *_protocol(about)]) + "\n"


def _line(cells):
  return f"| {' | '.join(cells)} |"


def _cells(row, metrics):
  return [row["label"], row["bits"], f"{row['true_weight_bits']:.2f}", format_bytes(row["size_bytes"]),
          format_ops(row["ops"]), str(len(row["seeds"])),
          *(format_metric(name, row["metrics"][name], len(row["seeds"])) for _, name in metrics)]  # fmt: skip


def format_metric(name, metric, count):
  """{"values"} or None -> "mean ± standard deviation"; shares in percent; how many values there are if not `count`."""
  if metric is None:
    return "-"
  values = metric["values"]
  if name.startswith("gap_closed"):
    std = "" if metric["std"] is None else f" ± {100 * metric['std']:.0f}"
    text = f"{100 * metric['mean']:.0f}{std} %"
  elif name == "training_seconds":
    text = spread([float(value) for value in values])
  else:
    text = spread(values)
  return text if len(values) == count else f"{text} (of {len(values)})"


def _protocol(about):
  """Sentences, as a Markdown list; then the commands."""
  protocol, reference = about["protocol"], about["reference"]
  sentences = [
      "Mean ± standard deviation over the seeds. A student's seed is that of its training and of its sampling. The"
      " teacher as it is is sampled with the same seeds: its spread is over samplings, and over teachers only where"
      " each seed has its own. All other rows start from the teacher and train with the same data, steps, batch size"
      " and learning rate.",
      f"Share of the gap closed: (`{FLOOR}` - row) / (`{FLOOR}` - `{CEILING}`), for each seed, then mean and"
      " deviation.",
      f"Steps of a student: {', '.join(map(str, about['training_steps']))}. Training seconds are those in steps,"
      " without compilation, checkpoints and evaluation, by the clock: pauses and other processes count.",
      "Where a row has such a part and does not say otherwise: "
      + ", ".join(f"`{name}` {value:g}" for name, value in about["settings"].items()) + ".",
  ]
  if protocol["feature_network"]:
    sentences.append(
        f"Features: {protocol['feature_network']} (SHA-256 `{protocol['feature_sha256'][:8]}...`),"
        f" {protocol['num_samples']} samples against {protocol['num_reference']} training images."
        + " Not comparable with published FID, which uses Inception." * (protocol["feature_network"] != "inception")
    )
  if reference["fid"] is not None:
    sentences.append(f"For scale: {reference['what']} gives {spread([reference['fid']])}.")
  sampling = ("sampler", "steps", "spacing", "eta", "clip", "guidance")
  sentences.append(f"Sampling: {', '.join(f'{name} {protocol[name]}' for name in sampling)}.")
  sentences.append(f"Hardware: {'; '.join(about['hardware'])}. {'; '.join(about['versions'])}.")
  sentences.append(f"{about['processes']} processes ran for {about['wall_seconds'] / 3600:.2f} hours in all;"
                   " study.jsonl has the command of each.")  # fmt: skip
  commands = ["", "```", *about["commands"], "```"] if about["commands"] else []
  return [*(f"- {sentence}" for sentence in sentences), *commands]

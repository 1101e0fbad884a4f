"""What a study's folder holds: one record for each finished run, then one summary for each row."""

import json
import math
import statistics
from pathlib import Path

from binarydm_jax.compare import check_protocols
from binarydm_jax.study.plan import MEASURED, read_fields, read_results, row_workdir, teacher_workdir
from binarydm_jax.study.rows import CEILING, FLOOR, ROWS
from binarydm_jax.training.guards import run_goodput
from binarydm_jax.workdir import FREE, PATHS, SEEDS, SPEED_ONLY, read_inputs

TEACHER = "teacher"
QUALITY = ("fid", "sfid", "kid", "inception_score", "precision", "recall", "heldout_loss")
COSTS = ("bits", "true_weight_bits", "size_bytes", "fp32_bytes", "macs", "ops")
PROTOCOL = ("feature_network", "feature_sha256", "num_samples", "num_reference", "sampler", "steps", "spacing", "eta",
            "clip", "guidance")  # fmt: skip
# Of a run's config what may differ. What a row sets itself may differ from the other rows, and all else that results
# depend on must agree.
MAY_DIFFER = (*SEEDS, *PATHS, *SPEED_ONLY, *FREE)
# Of the method; they stand in each record.
SETTINGS = ("distill.weight", "distill.prediction_weight", "quant.tau", "quant.transition", "quant.fade")
# Qualities of which the share of the gap that is closed is said: lower is better.
GAPS = ("fid", "heldout_loss")


def collect(folder, rows=ROWS, without=()):
  """(records, results, teachers, fields): of the finished students of `rows`, row by row and seed by seed; what they
  measured; {seed: SHA-256 of its teacher}, as far as it is known; {field of the config: value} as all rows have it that
  do not set it themselves.

  A record is a flat dict, a line of results.csv. The teacher's records come first, one for each sampling seed.

  Raises:
    ValueError: nothing is finished, or the runs were measured by different protocols, by configs that differ in more
      than the rows' own fields, or trained from different teachers.
  """
  records, results, shared, sampled, teachers = [], [], {}, {}, {}
  for row, seed, workdir, found in finished_runs(folder, rows, without):
    results.append(found)
    config = read_fields(workdir)
    teacher, student = found["models"]
    settings = {name: config[name] for name in SETTINGS}
    records.append(_record(row.name, seed, student, workdir, config["student.steps"], settings))
    if seed not in sampled:
      home = next(filter(Path.is_dir, (teacher_workdir(folder, seed), teacher_workdir(folder))), None)
      sampled[seed] = _record(TEACHER, seed, teacher, home, config["teacher.steps"] if home else None)
    inputs = read_inputs(workdir)
    add_shared(shared, row, seed, config, inputs)
    if "teacher_sha256" in inputs:
      teachers[str(seed)] = inputs["teacher_sha256"]
  if not records:
    raise ValueError(f"{folder} holds no finished run of a study")
  check_protocols(results)
  check_shared(folder, shared)
  fields = {name: json.loads(next(iter(values))) for (name, seed), values in shared.items() if seed is None}
  return [sampled[seed] for seed in sorted(sampled)] + records, results, teachers, fields


def finished_runs(folder, rows=ROWS, without=()):
  """(row, seed, workdir, content of results.json) of the finished students in it, row by row and seed by seed.

  Args:
    without: (name of a row, seed) of those that are left out.
  """
  for row in rows:
    for seed in _seeds(folder, row.name):
      workdir = row_workdir(folder, row.name, seed)
      found = None if (row.name, seed) in without else read_results(workdir)
      if found is not None:
        yield row, seed, workdir, found


def _seeds(folder, name):
  found = (path.name.removeprefix("seed_") for path in (Path(folder) / name).glob("seed_*"))
  return sorted(int(seed) for seed in found if seed.isdigit())


def _record(name, seed, model, workdir, steps, settings=None):
  training = run_goodput(workdir) if workdir else None
  return dict(
      row=name, seed=seed, **{key: model.get(key) for key in (*QUALITY, *COSTS)}, training_steps=steps,
      training_seconds=training and training["goodput"] * training["seconds"],
      **(settings or dict.fromkeys(SETTINGS)), **{key: model.get(key) for key in PROTOCOL}, workdir=str(workdir or ""),
  )  # fmt: skip


def add_shared(shared, row, seed, config, inputs):
  """Notes in `shared` what must be equal in all rows: fields of the config, as JSON, and for each seed the teacher."""
  for name, value in config.items():
    if name.split(".")[0] in MEASURED and name not in row.overrides and name not in MAY_DIFFER:
      shared.setdefault((name, None), {}).setdefault(json.dumps(value), f"{row.name} seed {seed}")
  if "teacher_sha256" in inputs:
    digests = shared.setdefault(("their teacher", seed), {})
    digests.setdefault(inputs["teacher_sha256"][:8], f"{row.name} seed {seed}")


def check_shared(folder, shared):
  """ValueError where `add_shared` has noted unlike values."""
  for (name, _), values in shared.items():
    if len(values) > 1:
      differing = ", ".join(f"{value} ({example})" for value, example in values.items())
      raise ValueError(f"the runs in {folder} differ in {name}: {differing}; give another --folder")


def summarize(records, rows=ROWS):
  """records as from `collect` -> a dict for the teacher and each row that has records, in the order of the rows.

  Each has name, label, group, seeds, COSTS, and `metrics`: {name: {"mean", "std" (None for one value), "values"}} of
  QUALITY, training_seconds, and gap_closed_NAME for NAME in GAPS: (floor - row) / (floor - ceiling) for each seed that
  all three have.

  Raises:
    ValueError: the runs of a row differ in COSTS: they are of different networks.
  """
  by_row = {}
  for record in records:
    by_row.setdefault(record["row"], {})[record["seed"]] = record
  named = [(TEACHER, "full precision teacher, as it is", "core"), *((row.name, row.label, row.group) for row in rows)]
  summaries = []
  for name, label, group in named:
    found = by_row.get(name)
    if not found:
      continue
    metrics = {key: _spread([record[key] for record in found.values()]) for key in (*QUALITY, "training_seconds")}
    for key in GAPS:
      shares = [gap_closed(found[seed][key], *(by_row.get(end, {}).get(seed, {}).get(key) for end in (FLOOR, CEILING)))
                for seed in found]  # fmt: skip
      metrics[f"gap_closed_{key}"] = _spread(shares)
    costs, *others = ({key: record[key] for key in COSTS} for record in found.values())
    for key, value in ((key, other[key]) for other in others for key in COSTS if other[key] != costs[key]):
      raise ValueError(f"the runs of {name} differ in {key}: {costs[key]} and {value}; they do not belong together")
    summaries.append(dict(name=name, label=label, group=group, seeds=list(found), **costs, metrics=metrics))
  return summaries


def gap_closed(value, floor, ceiling):
  """(floor - value) / (floor - ceiling); None where a value is missing or the floor is not above the ceiling."""
  if any(x is None or not math.isfinite(x) for x in (value, floor, ceiling)) or floor <= ceiling:
    return None
  return (floor - value) / (floor - ceiling)


def _spread(values):
  """Mean and standard deviation of the values that are there; None where there are none."""
  values = [value for value in values if value is not None]
  if not values:
    return None
  std = statistics.stdev(values) if len(values) > 1 else None
  return dict(mean=statistics.mean(values), std=std, values=values)


def read_attempts(folder):
  """The lines of study.jsonl, one for each process that a study has run; a line that a crash cut off is left out."""
  try:
    lines = (Path(folder) / "study.jsonl").read_text().splitlines()
  except OSError:
    return []
  found = []
  for line in lines:
    try:
      found.append(json.loads(line))
    except json.JSONDecodeError:
      continue
  return found


def wall_seconds(attempts):
  """Seconds in which at least one process ran."""
  total, reached = 0.0, -math.inf
  for begun, seconds in sorted((attempt["begun"], attempt["seconds"]) for attempt in attempts):
    total += max(0.0, begun + seconds - max(begun, reached))
    reached = max(reached, begun + seconds)
  return total

"""Pictures of a study: quality of each row, quality against size, training curves, samples side by side."""

import functools
import itertools
import textwrap
from pathlib import Path

import numpy as np
from matplotlib import ticker

from binarydm_jax import panels, plots
from binarydm_jax.compare import spread
from binarydm_jax.evaluation.sample_files import open_samples
from binarydm_jax.files import write_atomically
from binarydm_jax.study.plan import row_workdir
from binarydm_jax.study.results import TEACHER
from binarydm_jax.study.rows import CEILING, ROWS

THEME = panels.THEMES["light"]
COLORS = ("#0f766e", "#c2620a", "#7c4dd8", "#1d6fb8", "#b8325e", "#7b8696", "#5b7f1e", "#8a5a2b", "#333a44", "#d0a215")
# Whose samples are shown, if the study has them: see `sample_grids`.
SHOWN = (TEACHER, "baseline", "binarydm_v1", "binarydm_v5")
GRID = 36


def write(folder, summaries):
  """Writes those pictures into folder/plots that the summaries have data for; returns their paths."""
  folder, written = Path(folder), []

  def save(name, content):
    write_atomically(folder / "plots" / name, content)
    written.append(folder / "plots" / name)

  # Without a feature network there is the held-out loss alone.
  for metric, label in (("fid", "Frechet distance"), ("heldout_loss", "held-out loss")):
    rows = [row for row in summaries if row["metrics"][metric]]
    students = [row for row in rows if row["name"] != TEACHER]
    if students:
      draw = functools.partial(_draw_rows, rows, metric, label)
      lines = max(name.count("\n") for name in map(_name, rows)) + 1
      save(f"{metric}.png", panels.draw_panel(draw, THEME, (7.5, 0.9 + (0.2 + 0.12 * lines) * len(rows))))
      draw = functools.partial(_draw_sizes, students, metric, label)
      save(f"{metric}_by_size.png", panels.draw_panel(draw, THEME, (7.5, 4.2)))
  curves = training_curves(folder, [row for row in summaries if row["group"] == "core" and row["name"] != TEACHER])
  if curves:
    save("training.png", panels.draw_panel(functools.partial(_draw_curves, curves), THEME, (7.5, 4.2)))
  if len(grids := sample_grids(folder, summaries)) > 1:
    save("samples.png", plots.png_bytes(plots.side_by_side(grids)))
  return written


def _error(metric):
  return 0.0 if metric["std"] is None else metric["std"]


def _name(row):
  """Label and bits, in lines that leave room for the plot."""
  return "\n".join(textwrap.wrap(f"{row['label']}  W{row['bits'].replace('/', 'A')}", 42, drop_whitespace=False))


def _draw_rows(rows, metric, label, axes, theme):
  """A line for each row, in the order of the table: a dot for each seed, mean and standard deviation."""
  for place, row in enumerate(rows):
    found = row["metrics"][metric]
    color = theme["teacher" if row["bits"] == "32/32" else "student"]
    axes.plot(found["values"], [place] * len(found["values"]), "o", color=color, alpha=0.35, markersize=3.5)
    axes.errorbar(found["mean"], place, xerr=_error(found), fmt="o", color=color, markersize=5.5, capsize=3)
  axes.set_yticks(range(len(rows)), map(_name, rows))
  axes.set_ylim(len(rows) - 0.4, -0.6)
  axes.set_xlabel(f"{label}; lower is better")


def _draw_sizes(rows, metric, label, axes, theme):
  """Size of the packed file's weights in MiB, logarithmic, against quality: the core rows with names and spread, small
  points for the others."""
  core = [row for row in rows if row["group"] == "core"] or rows
  place = lambda row: (row["size_bytes"] / 2**20, row["metrics"][metric]["mean"])
  others = [place(row) for row in rows if row not in core]
  if others:
    axes.plot(*zip(*others), "o", color=theme["ink"], alpha=0.4, markersize=3, label="other rows")
    axes.legend(frameon=False, fontsize=7.5, labelcolor=theme["ink"])
  for row in core:
    color = theme["teacher" if row["bits"] == "32/32" else "student"]
    axes.errorbar(*place(row), yerr=_error(row["metrics"][metric]), fmt="o", color=color, markersize=5, capsize=3)
  axes.set_xscale("log")
  sizes = [row["size_bytes"] / 2**20 for row in rows]
  axes.set_xlim(min(sizes) / 1.4, max(sizes) * 2)
  _write_names(axes, core, place, theme)
  axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
  axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
  axes.xaxis.set_minor_formatter(ticker.NullFormatter())
  axes.set_xlabel("MiB of packed weights")
  axes.set_ylabel(label)


def _write_names(axes, rows, place, theme):
  """The rows' names beside their points; of those of about one size each is moved up where it would cover another."""
  step = 0.04 * float(np.diff(axes.get_ylim())[0])
  reached = {}
  for row in sorted(rows, key=lambda row: place(row)[1]):
    x, y = place(row)
    column = next((known for known in reached if abs(np.log(x / known)) < 0.3), x)
    reached[column] = max(y, reached.get(column, -np.inf) + step)
    axes.annotate(row["name"], (x, reached[column]), xytext=(6, 3), textcoords="offset points", fontsize=7.5,
                  color=theme["ink"])  # fmt: skip


def training_curves(folder, rows):
  """[(label, steps int64 [n], denoising loss float64 [n])]: of each row the mean over its seeds, where all have it."""
  found = []
  for row in rows:
    series = [plots.read_curves(row_workdir(folder, row["name"], seed) / "metrics.jsonl").get("student", {})
              for seed in row["seeds"]]  # fmt: skip
    series = [curves["simple"] for curves in series if "simple" in curves]
    if series:
      steps = sorted(set.intersection(*(set(steps.tolist()) for steps, _ in series)))
      losses = np.mean([values[np.isin(steps_of, steps)] for steps_of, values in series], axis=0)
      found.append((row["label"], np.array(steps), losses))
  return found


def _draw_curves(curves, axes, theme):
  del theme
  for (label, steps, losses), color, style in zip(curves, COLORS, itertools.cycle(("-", "--", ":"))):
    smooth = plots.smooth(losses, max(3, len(losses) // 10)) if len(losses) >= 10 else losses
    marker = "o" if len(steps) < 3 else None
    axes.plot(steps, smooth, style, color=color, linewidth=1.5, label=label, marker=marker, markersize=3)
  values = np.concatenate([losses for *_, losses in curves])
  panels.log_axis(axes, values.min(), values.max())
  panels.step_axis(axes)
  axes.set_ylabel("denoising loss in training, mean over seeds")


def sample_grids(folder, summaries):
  """{caption: uint8 [n, h, w, c]}: the first samples of SHOWN, of the first seed that all of them have.

  Sample i of every model is drawn from the same noise. Where the study has fewer rows of SHOWN, the best other
  quantized ones of that seed, by held-out loss, make up the number.
  """
  by_name = {row["name"]: row for row in summaries}
  rows = [by_name[name] for name in SHOWN if name in by_name]
  seeds = set.intersection(*(set(row["seeds"]) for row in rows)) if TEACHER in by_name else None
  if not seeds:
    return {}
  seed, found = min(seeds), {}
  others = [row for row in summaries if row["name"] not in (*SHOWN, CEILING) and seed in row["seeds"]]
  others = [row for row in others if row["metrics"]["heldout_loss"]]
  rows += sorted(others, key=lambda row: row["metrics"]["heldout_loss"]["mean"])
  for row in rows[: len(SHOWN)]:
    # The teacher's stand in the folder of each of its students; not all need be here, if studies were put together.
    places = [other.name for other in ROWS] if row["name"] == TEACHER else [row["name"]]
    model = "teacher" if row["name"] == TEACHER else "student"
    paths = (row_workdir(folder, place, seed) / "samples" / f"{model}.npz" for place in places)
    if path := next(filter(Path.exists, paths), None):
      fid = row["metrics"]["fid"]
      caption = f"{row['name']}: {spread(fid['values'])}" if fid else row["name"]
      found[caption] = np.array(open_samples(path)[:GRID])
  return found

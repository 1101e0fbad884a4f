"""What binarization does to a network, drawn for the report: each plot with a caption that says what to look for.

From results.json: the distance of features and the loss by timestep. From the rows of diagnostics.jsonl (see
training/diagnostics.py): weights, signs, scales and steps over training.
"""

import functools
import json
import pathlib

import numpy as np
from matplotlib import ticker
from matplotlib.colors import to_rgb

from binarydm_jax import panels

PARTS = {"all": "text", "encoder": "simple", "middle": "lrm", "decoder": "student", "edges": "teacher"}
SCALES = {"scale1": ("first basis", "student"), "scale2": ("second basis", "simple"),
          "weight_step": ("weight step", "lrm")}
SNAPSHOTS = 5  # histograms in one panel


def read_rows(path):
  """diagnostics.jsonl -> list of its rows by step; unreadable lines are passed over, of two for one step the later
  counts.

  Returns:
    list of dicts; [] where there is no file.
  """
  path, rows = pathlib.Path(path), {}
  for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
    try:
      row = json.loads(line)
      rows[int(row["step"])] = row
    except (ValueError, KeyError, TypeError):
      continue
  return [rows[step] for step in sorted(rows)]


def figures(results, rows):
  """HTML of every plot that has data; "" if none has.

  Args:
    results: of results.json, in which "block_distance" and "loss_by_timestep" are looked for.
    rows: from `read_rows`.
  """
  parts = []
  if distance := results.get("block_distance"):
    parts += _block_figures(distance)
  if loss := results.get("loss_by_timestep"):
    parts.append(_timestep_figure(loss))
  parts += _histogram_figures(rows)
  parts += [figure for draw in (_flip_figure, _activation_figure, _scale_figure) if (figure := draw(rows))]
  return f'<div class="plots">{"".join(parts)}</div>' if parts else ""


def _block_figures(distance):
  """Of results["block_distance"]: the relative distance as bars, then both norms."""
  names, relative = distance["blocks"], 100 * _floats(distance["relative"])
  gap, norm = _floats(distance["distance"]), _floats(distance["teacher_norm"])

  def bars(axes, theme):
    axes.bar(range(len(names)), relative, color=theme["student"], width=0.7)
    axes.set_ylabel("% of the teacher's norm")
    _block_axis(axes, names)

  def lines(axes, theme):
    axes.plot(norm, color=theme["teacher"], linewidth=1.8, marker="o", markersize=3, label="norm of the teacher's")
    axes.plot(gap, color=theme["student"], linewidth=1.8, marker="o", markersize=3, label="distance to the student's")
    _log_if_positive(axes, np.concatenate([norm, gap]))
    _block_axis(axes, names)

  drawn = f"mean over {distance['images']} held-out images at timesteps {', '.join(map(str, distance['timesteps']))}"
  return [
      panels.panel_figure(
          "Relative distance to the teacher, by block", bars,
          f"L2 norm of the difference between the features of the packed student and of the teacher, over the norm of "
          f"the teacher's; {drawn}. 0 is a perfect copy; at 100 % the difference is as large as the features. "
          "Blocks stand in the order of the network: look where the bars jump, for errors that enter there."),
      panels.panel_figure(
          "Distance and size of features, by block", lines,
          "The same before the division. Where the two lines meet, little of the teacher is left; a distance that "
          "grows only because features do keeps its gap to the upper line."),
  ]


def _timestep_figure(loss):
  """Of results["loss_by_timestep"]."""
  starts = loss["first_timestep"]
  series = {name: _floats(loss[name]) for name in ("teacher", "student") if name in loss}

  def draw(axes, theme):
    for name, values in series.items():
      axes.plot(range(len(values)), values, color=theme[name], linewidth=1.8, marker="o", markersize=3.5, label=name)
    _log_if_positive(axes, np.concatenate(list(series.values())))
    axes.margins(y=0.12)
    if len(series) == 2:
      for i, (base, value) in enumerate(zip(*series.values())):
        if np.isfinite(base) and np.isfinite(value) and base > 0:
          axes.annotate(f"{100 * (value / base - 1):+.0f} %", (i, max(base, value)), (0, 6), ha="center", fontsize=7,
                        textcoords="offset points", color=theme["ink"])
    axes.set_xticks(range(len(starts)), [f"{start:,}" for start in starts])
    axes.set_xlabel("timesteps, from (left: hardly any noise, right: all noise)")

  return panels.panel_figure(
      "Held-out loss by timestep", draw,
      "The held-out loss, taken apart into equal ranges of timesteps; the numbers say how much more the student "
      "has. Look where the student's line leaves the teacher's: on the left fine detail is lost, on the right the "
      "rough outline. The mean of all draws is the held-out loss of the table.")


def _histogram_figures(rows):
  """A panel for each kind of quantized weights: histograms at up to SNAPSHOTS steps."""
  rows = [row for row in rows if row.get("histograms", {}).get("counts")]
  if not rows:
    return []
  chosen = [rows[i] for i in sorted(set(np.linspace(0, len(rows) - 1, SNAPSHOTS).round().astype(int)))]

  def draw(kind, axes, theme):
    for i, row in enumerate(chosen):
      counts = _floats(row["histograms"]["counts"][kind])
      limit = row["histograms"]["limit"]
      edges = np.linspace(-limit, limit, len(counts) + 1)
      # From grey to colour as training goes on.
      color = _blend(theme["teacher"], theme["student"], i / max(1, len(chosen) - 1))
      # One above the other, each as high as the place allows: over each other they could not be told apart.
      base = len(chosen) - 1 - i
      axes.stairs(base + 0.88 * counts / counts.max(), edges, baseline=base, color=color, fill=True, alpha=0.75)
    axes.set_yticks(range(len(chosen)), [f"step {row['step']:,}" for row in reversed(chosen)])
    axes.set_xlabel("weight / mean magnitude of its layer")

  captions = {
      "one basis": "The weights that the network multiplies with: a scale for each output channel times a sign. Two "
                   "bumps, as wide as the scales differ between channels; bumps that widen are channels that "
                   "training has made unequal.",
      "two bases": "Four bumps: two scales with a sign each. The inner ones are small weights, which one basis would "
                   "round up; inner and outer bumps that run together are a second basis that is not used.",
      "evolving basis": "Four bumps while the second basis lives; as its scale shrinks they close in pairs, and after "
                        "the transition two are left.",
  }
  other = "Each bar is one of the few values that a weight can take; bars that grow at the ends are clipped weights."
  return [
      panels.panel_figure(f"Quantized weights: {kind}", functools.partial(draw, kind), captions.get(kind, other))
      for kind in chosen[-1]["histograms"]["counts"]
  ]


def _flip_figure(rows):
  """Signs flipped per thousand steps, by part of the network."""
  rows = [row for row in rows if row.get("flips_per_1000_steps")]
  if not rows:
    return None

  def draw(axes, theme):
    for part, color in PARTS.items():
      points = [(row["step"], 100 * row["flips_per_1000_steps"][part]) for row in rows
                if part in row["flips_per_1000_steps"]]
      if points:
        axes.plot(*zip(*points), color=theme[color], linewidth=2.4 if part == "all" else 1.5, marker="o",
                  markersize=3.5, label=part)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("% of the signs")
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    panels.step_axis(axes)

  return panels.panel_figure(
      "Signs flipped per thousand steps", draw,
      "How many binary weights (first basis) differ from the checkpoint before, per thousand steps; there and back "
      "between two checkpoints counts as nothing, and short intervals can give rates above 100 %. It should fall "
      "with the learning rate: near zero from the start, the signs never left the teacher's; still high at the end,"
      " they have not settled.")


def _activation_figure(rows):
  """Steps of the activation quantizers over their first values, a thin line each, a thick one for a part's median."""
  rows = [row for row in rows if row.get("activation_steps")]
  parts = {part: _trajectories([row["activation_steps"].get(part, {}) for row in rows]) for part in PARTS}
  return _trajectory_figure(
      "Activation steps, relative to their start", [row["step"] for row in rows],
      {part: (part, PARTS[part], lines) for part, lines in parts.items() if len(lines)},
      "The learned step of each layer's input over its calibrated start; thin lines are layers, thick ones medians. "
      "Lines that leave the crowd are layers whose calibration was off; lines that still fall or rise at the end, "
      "layers that want more training or a higher rate.")


def _scale_figure(rows):
  """Mean scales of each layer's weights over their first values."""
  rows = [row for row in rows if any(row.get(name) for name in SCALES)]
  lines = {name: _trajectories([row.get(name, {}) for row in rows]) for name in SCALES}
  return _trajectory_figure(
      "Scales of the weights, relative to their start", [row["step"] for row in rows],
      {name: (*SCALES[name], values) for name, values in lines.items() if len(values)},
      "Each layer's mean scale over its start, the mean magnitude of the teacher's weights; thick lines are medians. A "
      "second basis that falls is being given up; its lines end where it is removed (EBB).")


def _trajectories(values):
  """[{name: value}] of consecutive rows -> value / first value: float64 [names, rows]; nan where not positive."""
  if not values or not values[0]:
    return np.zeros((0, len(values)))
  table = np.array([[row.get(name, np.nan) for row in values] for name in values[0]], np.float64)
  table[~(table > 0)] = np.nan
  return table / table[:, :1]


def _trajectory_figure(title, steps, groups, caption):
  """groups: {key: (label, colour name, lines [n, rows])}; None with fewer than two rows."""
  if len(steps) < 2 or not groups:
    return None

  def draw(axes, theme):
    for _, color, lines in groups.values():
      axes.plot(steps, lines.T, color=theme[color], linewidth=0.7, alpha=0.35)
    for label, color, lines in groups.values():
      # A column without any value, after the second basis is gone, has no median.
      median = [np.median(column[np.isfinite(column)]) if np.isfinite(column).any() else np.nan for column in lines.T]
      axes.plot(steps, median, color=theme[color], linewidth=2.2, label=label)
    _log_if_positive(axes, np.concatenate([lines.ravel() for *_, lines in groups.values()]))
    axes.set_ylabel("times the start")
    panels.step_axis(axes)

  return panels.panel_figure(title, draw, caption)


def _floats(values):
  """A JSON list, in which None stands for what is not finite -> float64 array."""
  return np.array([np.nan if value is None else value for value in values], np.float64)


def _blend(a, b, part):
  """The colour between a and b."""
  return tuple((1 - part) * np.array(to_rgb(a)) + part * np.array(to_rgb(b)))


def _log_if_positive(axes, values):
  """Logarithmic y if everything that is finite is positive."""
  values = values[np.isfinite(values)]
  if len(values) and values.min() > 0:
    panels.log_axis(axes, values.min(), values.max())


def _block_axis(axes, names):
  """Names of blocks as x."""
  axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7.5 if len(names) < 30 else 5)
  axes.margins(x=0.02)

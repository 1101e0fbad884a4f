"""What the student's signs, weights, scales and steps do in training: a row of numbers at each checkpoint.

The device keeps one bit a binarized weight between two rows (33 MiB for LDM-4) and, while a row is computed, no more
than a few copies of one layer.
"""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from binarydm_jax import quant

# Histograms are of weights over their layer's mean magnitude, from -LIMIT to LIMIT; -1, 0 and 1 are middles of bins.
LIMIT, BINS = 3.05, 61
ACTIVATION_STEPS = ("step", "step_a", "step_b")
WEIGHT_SCALES = ("scale1", "scale2", "weight_step")
WEIGHT_NAMES = {"one_basis": "one basis", "multi_basis": "two bases", "evolving": "evolving basis"}


def sign_bits(kernel):
  """Bits of w >= 0, eight to a byte, the last byte filled up with 0: uint8 [ceil(size / 8)]."""
  return jnp.packbits(kernel.reshape(-1) >= 0)


def count_flips(before, after):
  """How many signs differ between two results of `sign_bits`: int32 scalar."""
  return jnp.sum(jax.lax.population_count(before ^ after).astype(jnp.int32))


def histogram(weights):
  """Counts of w / mean|w| in BINS equal bins over [-LIMIT, LIMIT), int32 [BINS]; the end bins take what lies outside.

  In units of the mean magnitude layers of any fan-in fit one picture: one basis stands at -1 and 1.
  """
  weights = weights.reshape(-1)
  unit = weights / quant.positive(jnp.mean(jnp.abs(weights)))
  edges = jnp.linspace(-LIMIT, LIMIT, BINS + 1)[1:-1]
  # Comparisons and a sum, which fuse; the scatter of a usual histogram is slow on accelerators.
  below = jnp.sum(unit[:, None] < edges, axis=0, dtype=jnp.int32)
  return jnp.diff(below, prepend=0, append=weights.size)


def quantized_kernel(kernel, learned, rule, second=None):
  """The weights that the layer multiplies with once its quantization is on.

  Args:
    kernel: latent weights [..., cin, cout].
    learned: the layer's leaves of the collection `quant`.
    rule: LayerRule, not "float".
    second: what is left of an evolving second basis, a scalar, or None for all of it.
  """
  if rule.weights == "lsq":
    return quant.lsq_weight(kernel, learned["weight_step"], rule.weight_bits)
  if rule.bases == 1:
    return quant.one_basis(kernel, learned["scale1"])
  return quant.multi_basis(kernel, learned["scale1"], learned["scale2"], second if rule.weights == "evolving" else None)


def student_signs(variables, table):
  """path -> `sign_bits` of every binarized layer: of its first basis, whether or not the layer is on already."""
  params = flax.traverse_util.flatten_dict(variables["params"], sep="/")
  return {path: sign_bits(params[f"{path}/kernel"]) for path, rule in table.items() if rule.bases}


def measure(signs, variables, gates, table):
  """Numbers of one row, per layer, on the device; a pure function, to be jitted.

  Args:
    signs: from `student_signs` at the row before.
    variables: {"params", "quant"} of the student.
    gates: quant.Gates, or None; only an evolving second basis is taken from it, so that the first rows of
      progressive initialisation, too, show quantized weights.
    table: path -> LayerRule.
  Returns:
    (signs now, {"flips": {path: int32 scalar}, "histogram": {path: int32 [BINS]}, and for each name in
    ACTIVATION_STEPS and WEIGHT_SCALES {path: float32 scalar, the mean over channels}}).
  """
  params = flax.traverse_util.flatten_dict(variables["params"], sep="/")
  learned = flax.traverse_util.flatten_dict(variables.get("quant", {}), sep="/")
  layers = {}
  for name, value in learned.items():
    path, leaf = name.rsplit("/", 1)
    layers.setdefault(path, {})[leaf] = value
  second = None if gates is None else gates.second
  now = student_signs(variables, table)
  numbers = {name: {} for name in (*ACTIVATION_STEPS, *WEIGHT_SCALES)}
  numbers["flips"] = {path: count_flips(signs[path], now[path]) for path in now}
  numbers["histogram"] = {
      path: histogram(quantized_kernel(params[f"{path}/kernel"], layers[path], rule, second))
      for path, rule in table.items()
      if rule.weights != "float"
  }
  for path, leaves in layers.items():
    for leaf, value in leaves.items():
      if leaf not in numbers:  # what other methods' activations and responses learn
        continue
      value = jnp.mean(quant.positive(value))
      if leaf == "scale2" and table[path].weights == "evolving" and second is not None:
        value = value * second
      numbers[leaf][path] = value
  return now, numbers


def part_names(table, block_names):
  """path -> "encoder", "middle" or "decoder", by the layer's block; "edges" for layers outside of all blocks."""
  middle = len(block_names) // 2
  parts = {name: ("encoder", "middle", "decoder")[(i >= middle) + (i > middle)] for i, name in enumerate(block_names)}
  return {path: parts.get(path.split("/")[0], "edges") for path in table}


def make_row(numbers, steps, sizes, table, parts):
  """Numbers of `measure` on the host -> what a line of diagnostics.jsonl holds.

  Args:
    numbers: per layer.
    steps: training steps since the row before; 0 for the first row, which has no flips.
    sizes: path -> number of weights.
    table: path -> LayerRule.
    parts: from `part_names`.
  Returns:
    {"flips_per_1000_steps": {"all" or part: fraction of the signs that differ from the row before, times
      1000 / steps},
     "histograms": {"limit": float, "counts": {kind of weights: [BINS]}},
     "activation_steps": {part: {path of the step: value}}, "scale1", "scale2", "weight_step": {path: mean}}.
  """
  flipped, total = {}, {}
  for path, count in numbers["flips"].items():
    for part in ("all", parts[path]):
      flipped[part] = flipped.get(part, 0) + int(count)
      total[part] = total.get(part, 0) + sizes[path]
  counts = {}
  for path, values in numbers["histogram"].items():
    kind = WEIGHT_NAMES.get(table[path].weights, f"{table[path].weight_bits}-bit steps")
    counts[kind] = counts.get(kind, 0) + np.asarray(values, np.int64)
  activation_steps = {}
  for name in ACTIVATION_STEPS:
    for path, value in numbers[name].items():
      activation_steps.setdefault(parts[path], {})[f"{path}/{name}"] = _short(value)
  return {
      "flips_per_1000_steps": {p: _short(flipped[p] / total[p] * 1000 / steps) for p in flipped if steps},
      "histograms": {"limit": LIMIT, "counts": {kind: values.tolist() for kind, values in counts.items()}},
      "activation_steps": activation_steps,
      **{name: {path: _short(value) for path, value in numbers[name].items()} for name in WEIGHT_SCALES},
  }


def _short(value):
  """Six digits are plenty for a picture and keep the lines short."""
  return float(f"{float(value):.6g}")

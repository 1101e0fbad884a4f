"""The packed model against float32: bytes on disk and in memory, time by layer shape and of the whole network, batch 1.

Layers: the shapes with the most multiply-accumulates; every run quantizes its input (but the float ones), convolves,
scales and adds the bias. Medians of runs that take turns; ratios are medians of the ratios within a turn. "a8", "a4",
"a1" are the native kernels at 1-bit weights and so many bits of activations; "xla" is XLA in int8 at a4.
"""

import statistics
import tempfile
from pathlib import Path

import numpy as np

from binarydm_jax.benchmark.common import peak_bytes, random_params, timed
from binarydm_jax.command_line import cpu_count

SHAPES = 8
SERIES = ("xla_float32", "torch_nchw", "torch_nhwc", "xla_int8", "native_a8", "native_a4", "native_a1")


def run(problem, repeats):
  """Yields rows: "machine", one "layer" for each shape, "file", "model", two of "agreement", "layers".

  Raises:
    ValueError: there is nothing packed to measure: full precision, or a rival's rules, which run by `float` alone.
  """
  import jax

  from binarydm_jax.deploy import kernels, load

  rules = problem.table.values()
  if not all(rule.plain for rule in rules) or not any(rule.weights != "float" for rule in rules):
    raise ValueError(
        f"method {problem.config.method!r} gives no packed network that the integer back ends run: take one of"
        " BinaryDM's, or lsq"
    )
  torch_reference = _torch_reference()
  path, reason = kernels.status()
  yield dict(
      row="machine", cores=cpu_count(),
      native=path or reason, native_threads=kernels.library.threads() or "all of XLA's",
      torch_threads=torch_reference.use_all_cores() if torch_reference else "no torch",
  )  # fmt: skip
  for layer, count in _heaviest(problem, SHAPES):
    yield dict(row="layer", count=count, **_layer(layer, repeats, torch_reference, path))
  params = random_params(problem.teacher, problem.input_shape)
  with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "model.safetensors"
    student, variables, sizes = _packed(problem, params, file)
    models = {name: load(file, name) for name in (("xla", "cpu") if path else ("xla",))}
    yield dict(row="file", **sizes, float32_bytes=sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
               **{f"resident_{name}_bytes": model.nbytes for name, model in models.items()})
  yield dict(row="model", **_whole(problem, params, models, repeats, torch_reference), peak_bytes=peak_bytes())
  from binarydm_jax.deploy.agreement import agreement, layer_errors, nudged

  name, model = list(models.items())[-1]
  trained, inputs = (student, variables), _inputs(problem)
  yield dict(row="agreement", what=f"{name} back end with the trained graph",
             **agreement((model.model, model.variables), trained, *inputs))
  yield dict(row="agreement", what="the trained graph with itself, biases and norms changed by 1e-7",
             **agreement((student, nudged(variables)), trained, *inputs))
  errors = layer_errors((model.model, model.variables), trained, *inputs)
  yield dict(row="layers", what="relative error of each layer's output, given the same input", count=len(errors),
             largest=max(errors.values()), median=statistics.median(errors.values()))


def _torch_reference():
  try:
    from binarydm_jax.benchmark import torch_reference
  except ImportError:
    return None
  return torch_reference


def _heaviest(problem, most):
  """[(LayerInfo, how many layers have its shape)] of the binarized shapes, the most multiply-accumulates first."""
  groups = {}
  for layer in problem.layers:
    if problem.table[layer.path].bases:
      groups.setdefault((layer.kernel_shape, layer.input_shape, layer.output_shape), []).append(layer)
  ranked = sorted(groups.values(), key=lambda layers: -sum(layer.macs for layer in layers))
  return [(layers[0], len(layers)) for layers in ranked[:most]]


def _take_turns(functions, repeats):
  """name -> seconds of each of `repeats` runs; the functions take turns, after one run of each."""
  for function in functions.values():
    timed(function)
  seconds = {name: [] for name in functions}
  for _ in range(repeats):
    for name, function in functions.items():
      seconds[name].append(timed(function))
  return seconds


def _ratio(seconds, slow, fast):
  return statistics.median(a / b for a, b in zip(seconds[slow], seconds[fast]))


def _layer(layer, repeats, torch_reference, native):
  """Times of one shape, as milliseconds, and how many times faster than float32 the kernels are."""
  import jax
  import jax.numpy as jnp

  from binarydm_jax.deploy import integer, kernels
  from binarydm_jax.quant import LayerRule, pack_signs

  rng = np.random.default_rng(0)
  shape = layer.kernel_shape if layer.kind == "conv" else (1, 1, *layer.kernel_shape)
  rows = layer.input_shape if layer.kind == "conv" else (1, int(np.prod(layer.input_shape[:-1])), layer.input_shape[-1])
  stride = layer.input_shape[0] // layer.output_shape[0] if layer.kind == "conv" else 1
  padding = ((shape[0] // 2,) * 2, (shape[1] // 2,) * 2)
  x = rng.standard_normal((1, *rows), np.float32)
  signs, scale, bias = rng.choice([-1, 1], shape), rng.uniform(0.01, 0.1, shape[3]), rng.standard_normal(shape[3])
  scale, bias, step = scale.astype(np.float32), bias.astype(np.float32), np.float32(0.4)
  kernel = (scale * signs).astype(np.float32)
  geometry = dict(kernel_shape=shape, stride=stride, padding=padding)
  device = jax.device_put((x, kernel, bias, scale, step))

  @jax.jit
  def convolve(x, kernel, bias):
    dimensions = integer.DIMENSIONS
    return bias + jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=dimensions)

  @jax.jit
  def expanded(x, tensors):
    return integer.run(LayerRule("one_basis", act_bits=4), tensors, x, None, **geometry)

  tensors = jax.device_put({"signs1": pack_signs(signs), "scale1": scale, "bias": bias, "step": step})
  functions = {"xla_float32": lambda: convolve(*device[:3])}
  if torch_reference:
    functions.update(torch_reference.convolutions(x, kernel, bias, stride, padding))
  functions["xla_int8"] = lambda: expanded(device[0], tensors)
  for bits in (8, 4, 1) if native else ():
    packed = jnp.asarray(kernels.prepack(signs, None, shape, bits))
    fused = jax.jit(lambda x, packed, bits=bits: kernels.conv(
        x, step, packed, device[3], None, device[2], act_bits=bits, bases=1, **geometry))
    functions[f"native_a{bits}"] = lambda fused=fused, packed=packed: fused(device[0], packed)
  seconds = _take_turns(functions, repeats)
  ours = [name for name in seconds if name.startswith("native")] or ["xla_int8"]
  # The layout in which PyTorch is faster.
  torch_name = min((name for name in seconds if name.startswith("torch")), default=None,
                   key=lambda name: statistics.median(seconds[name]))
  row = dict(kernel="x".join(map(str, shape)), input="x".join(map(str, rows)), stride=stride, macs=layer.macs)
  row |= {f"{name}_ms": 1e3 * statistics.median(values) for name, values in seconds.items()}
  for name in ours:
    row[f"{name}_over_xla"] = _ratio(seconds, "xla_float32", name)
    if torch_name:
      row[f"{name}_over_torch"] = _ratio(seconds, torch_name, name)
  return row


def _inputs(problem):
  """(x, timesteps, labels or None) for one prediction."""
  import jax
  import jax.numpy as jnp

  x = jax.random.normal(jax.random.key(1), (1, *problem.input_shape))
  return x, jnp.array([500]), jnp.zeros(1, jnp.int32) if problem.teacher.num_classes else None


def _packed(problem, params, path):
  """Writes the packed student of these weights: (student as deployed, its variables, sizes).

  The steps of activations start from one random input, as at the begin of training.
  """
  import jax

  from binarydm_jax import quant
  from binarydm_jax.deploy import export

  table = quant.deployed_table(problem.table)
  student = problem.teacher.clone(rules=table)
  learned = jax.jit(lambda params, *inputs: quant.calibrate(student, params, *inputs))(params, *_inputs(problem))
  variables = {"params": params, "quant": learned}
  diffusion = {name: problem.config.diffusion[name] for name in
               ("schedule", "num_timesteps", "beta_start", "beta_end", "target")}
  sizes = export(path, variables, problem.teacher, table, problem.layers, diffusion, problem.input_shape,
                 remainder=problem.config.export.remainder)
  return student, variables, dict(payload_bytes=sizes[0], header_bytes=sizes[1], file_bytes=sum(sizes),
                                  remainder=problem.config.export.remainder)


def _whole(problem, params, models, repeats, torch_reference):
  """Seconds of one prediction of the whole network, and ratios."""
  import jax

  inputs = _inputs(problem)
  predict = jax.jit(lambda params, *inputs: problem.teacher.apply({"params": params}, *inputs)[0])
  functions = {"xla_float32": lambda: predict(params, *inputs)}
  if torch_reference:
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    if net := torch_reference.unet(problem.teacher, problem.input_shape, count):
      functions["torch_float32"] = net
  for name, model in models.items():
    functions[f"packed_{name}"] = lambda model=model: model(*inputs)
  seconds = _take_turns(functions, repeats)
  row = {f"{name}_seconds": statistics.median(values) for name, values in seconds.items()}
  for name in models:
    for other in ("xla_float32", "torch_float32"):
      if other in seconds:
        row[f"packed_{name}_over_{other.partition('_')[0]}"] = _ratio(seconds, other, f"packed_{name}")
  return row


def plot(rows, path):
  """Milliseconds of each shape by each program, as PNG."""
  from binarydm_jax.files import write_atomically
  from binarydm_jax.panels import THEMES, draw_panel

  layers = [row for row in rows if row["row"] == "layer"]
  if not layers:  # no binarized shape: lsq
    return
  series = [name for name in SERIES if f"{name}_ms" in layers[0]]

  def draw(axes, theme):
    for i, name in enumerate(series):
      places = np.arange(len(layers)) + 0.8 * i / len(series)
      axes.barh(places, [row[f"{name}_ms"] for row in layers], 0.8 / len(series), label=name.replace("_", " "))
    labels = [f"{row['kernel']} at {row['input']}" for row in layers]
    axes.set_yticks(np.arange(len(layers)) + 0.4, labels, fontsize=6)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.4 * max(row[f"{name}_ms"] for row in layers for name in series))  # room for the legend
    axes.set_xlabel("milliseconds, batch 1")

  write_atomically(path, draw_panel(draw, THEMES["light"]))

"""What a loaded model computes its packed layers with: XLA on any device, or the native kernels on CPUs."""

import logging
import math

import jax
import jax.numpy as jnp
import numpy as np

from binarydm_jax import quant
from binarydm_jax.deploy import attention, integer, kernels
from binarydm_jax.deploy.integer import lowered_by

BACKENDS = ("auto", "xla", "cpu", "float")
KERNEL_BITS = (8, 4, 3, 2)  # of activations whose layers the native kernels take
_LOG = logging.getLogger(__name__)


def prepare(file, backend):
  """(name of the back end, rule table for the model, variables) of a PackedFile.

  Args:
    file: PackedFile.
    backend: a name of BACKENDS, see `runtime.load`.
  Raises:
    ValueError: an unknown name; "cpu" where the kernels cannot run; "xla" or "cpu" for activations or responses that
      only "float" computes.
  """
  if backend not in BACKENDS:
    raise ValueError(f"back end {backend!r} is not one of {', '.join(BACKENDS)}")
  table, shapes = file.description.table, file.description.shapes
  others = [path for path, rule in table.items() if not rule.plain]
  if others and backend != "float":
    rule = table[others[0]]
    words = f"layer {others[0]!r} has activation {rule.activation!r}, response {rule.response!r}"
    if backend != "auto":
      raise ValueError(f"{words}: back end {backend!r} does not compute them, take 'float'")
    _LOG.warning("%s: the model runs by the back end 'float'", words)
    backend = "float"
  if backend == "float":
    return backend, quant.dequantized(table), quant.unpack(file.tensors, table, shapes)
  backend = _choose(backend, [path for path, rule in table.items() if _is_native(rule)])
  entries, tensors = {}, dict(file.tensors)
  for path, rule in table.items():
    if path.endswith("/qk") and not shapes[path]:
      native = backend == "cpu" and kernels.attention_runs()
      name, run = ("cpu", attention.run_native) if native else ("xla", attention.run)
      entries[path] = quant.PackedAttention(rule, name, run)
    elif rule.weights == "float":
      entries[path] = rule
    elif backend == "cpu" and _is_native(rule) and _prepack(tensors, path, rule, shapes[path]):
      entries[path] = quant.PackedLayer(rule, "cpu", run_native)
    else:
      entries[path] = quant.PackedLayer(rule, "xla", integer.run)
  return backend, entries, quant.packed_collections(tensors, table)


def _is_native(rule):
  return bool(rule.bases) and rule.act_bits in KERNEL_BITS


def _choose(backend, native):
  """ "xla" or "cpu", from what was asked for and the paths of the layers that the kernels could take."""
  if backend == "xla" or (backend == "auto" and (jax.default_backend() != "cpu" or not native)):
    return "xla"
  path, reason = kernels.status() if jax.default_backend() == "cpu" else (None, "JAX runs on another device")
  if backend == "auto" and path == "portable":  # of 2 to 8 bits it takes from 2.5 to 10 times as long as XLA
    path, reason = None, "the kernels have no fast path for this processor"
  if path:
    return "cpu"
  if backend == "cpu":
    raise ValueError(f"back end 'cpu' cannot be had: {reason}; 'auto' falls back to XLA")
  _LOG.warning("%s; packed layers run by XLA", reason)
  return "xla"


def _prepack(tensors, path, rule, shape):
  """Puts PATH/native, the signs in the kernels' layout, in place of PATH/signs1 and PATH/signs2, and where codes are
  asymmetric PATH/offset beside it; False: they cannot."""
  shape = (1, 1, *shape) if len(shape) == 2 else shape
  signs = [quant.unpack_codes(tensors[f"{path}/signs{basis}"], 1, shape).astype(bool) for basis in (1, 2)[: rule.bases]]
  try:
    native = kernels.prepack(signs[0], signs[1] if rule.bases == 2 else None, shape, rule.act_bits)
  except ValueError:  # a shape that the kernels do not have
    return False
  for basis in range(1, rule.bases + 1):
    del tensors[f"{path}/signs{basis}"]
  tensors[f"{path}/native"] = np.asarray(native)
  if f"{path}/zero_point" in tensors:
    # What lowering the codes takes from every output: the padding is lowered, too, so all taps count.
    lower = lowered_by(tensors[f"{path}/zero_point"], rule.act_bits)
    sums = (tensors[f"{path}/scale{basis}"] * (2 * np.sum(given, (0, 1, 2), np.int32) - math.prod(shape[:3]))
            for basis, given in enumerate(signs, 1))
    tensors[f"{path}/offset"] = np.asarray(tensors[f"{path}/step"] * lower * sum(sums), np.float32)
  return True


def run_native(rule, tensors, x, residual, *, kernel_shape, stride, padding):
  """`quant.PackedLayer.run` by the native kernels: one call quantizes, convolves, scales and adds."""
  bias = tensors.get("bias")
  bias = None if bias is None else bias.astype(jnp.float32)
  if "offset" in tensors:
    bias = tensors["offset"] if bias is None else bias + tensors["offset"]
  return kernels.conv(
      x.astype(jnp.float32),
      tensors["step"],
      tensors["native"],
      tensors["scale1"],
      tensors.get("scale2"),
      bias,
      None if residual is None else residual.astype(jnp.float32),
      tensors.get("zero_point"),
      kernel_shape=kernel_shape,
      stride=stride,
      padding=padding,
      act_bits=rule.act_bits,
      bases=rule.bases,
  )

"""Trained variables of any quantized module <-> named numpy arrays that have the bits of its rules.

For a layer at PATH: "PATH/signs1" and "PATH/signs2" (uint8, one bit a weight in C order of the kernel, little-endian in
a byte, 1 for +1), "PATH/scale1", "PATH/scale2"; for LSQ weights "PATH/codes" (`weight_bits` bits a weight, offset by
2^(bits-1)) and "PATH/weight_step"; "PATH/step" (of its input), "PATH/step_a", "PATH/step_b" (of a product), beside them
"PATH/zero_point" and so on where activations are asymmetric. What the activations and responses of other methods learn
(`rivals.NAMES`) has its name under PATH, in float32. Whatever is not quantized stands under its parameter's path in
float32 or bfloat16.
"""

import dataclasses

import flax.traverse_util
import jax
import numpy as np

from binarydm_jax.quant import rivals
from binarydm_jax.quant.activations import zero_point_name
from binarydm_jax.quant.packing import pack_codes, pack_signs, unpack_codes, unpack_signs
from binarydm_jax.quant.ste import positive
from binarydm_jax.quant.step_size import codes, levels
from binarydm_jax.quant.weights import one_basis

# Parts of a packed kernel, and the activation steps of a layer or a product.
KERNEL_PARTS = ("signs1", "signs2", "scale1", "scale2", "codes", "weight_step")
STEPS = ("step", "step_a", "step_b")
ZERO_POINTS = tuple(map(zero_point_name, STEPS))


def pack(variables, table, remainder=np.float32):
  """{"params", "quant"} -> name -> numpy array (see the top of this file), for `safetensors.numpy.save_file`.

  Args:
    variables: trained; both collections and no other.
    remainder: dtype of the parameters that are not quantized, float32 or bfloat16; scales and steps stay float32.
    table: path -> LayerRule that the variables were made with (`student.rules`). "evolving" weights are packed with
      both bases, as a call without a gate computes them; after the transition say "one_basis", which drops the second.
  Raises:
    ValueError: a collection that cannot be packed, scales that are missing or that the table does not know, kernels
      stacked by `nn.scan` or `nn.vmap`.
  """
  foreign = sorted(set(variables) - {"params", "quant"})
  if foreign:
    raise ValueError(f"collection {foreign[0]!r} cannot be packed: give {{'params', 'quant'}} alone")
  params, learned = (_flat(jax.device_get(variables.get(name, {}))) for name in ("params", "quant"))
  tensors = {}
  for path, rule in table.items():
    if rule.weights == "float" or f"{path}/kernel" not in params:
      continue
    kernel = np.asarray(params.pop(f"{path}/kernel"), np.float32)
    if rule.weights == "lsq":
      step = _scale(learned, path, "weight_step", kernel)
      integers = np.asarray(codes(kernel, step, rule.weight_bits)) - levels(rule.weight_bits)[0]
      tensors[f"{path}/codes"] = pack_codes(integers.astype(np.uint8), rule.weight_bits)
      tensors[f"{path}/weight_step"] = step
      continue
    scale1 = _scale(learned, path, "scale1", kernel)
    tensors[f"{path}/signs1"], tensors[f"{path}/scale1"] = pack_signs(kernel), scale1
    if rule.bases == 2:
      # The residual by the very arithmetic of the trained graph: a fused multiply-add elsewhere could flip a sign.
      tensors[f"{path}/signs2"] = pack_signs(np.asarray(kernel - one_basis(kernel, scale1)))
      tensors[f"{path}/scale2"] = _scale(learned, path, "scale2", kernel)
    learned.pop(f"{path}/scale2", None)  # left over by an evolving basis that is gone
  names = _activation_names(table)
  for name, value in learned.items():
    if name not in names:
      raise ValueError(f"the rule table has no place for quant/{name}: pack with the table of the trained module")
    # As the quantizers floor and round them.
    leaf = name.rpartition("/")[2]
    value = positive(value) if leaf in STEPS else np.round(value) if leaf in ZERO_POINTS else value
    tensors[name] = np.asarray(value, np.float32)
  for name, value in params.items():
    tensors[name] = np.asarray(value, remainder)
  return tensors


def unpack(tensors, table, shapes):
  """The inverse of `pack`, for `model.clone(rules=quant.dequantized(table))`.

  Args:
    tensors: name -> array, from `pack` or a file.
    table: path -> LayerRule, as given to `pack`.
    shapes: path -> kernel shape: `{layer.path: layer.kernel_shape for layer in quant.inspect_layers(...)}`.
  Returns:
    {"params", "quant"}: float32 kernels that already have the quantized values, and all that activations learned.
  Raises:
    ValueError: a part of a kernel is missing, left over or of another size: packed by other rules.
  """
  tensors = dict(tensors)
  params = {}

  def take(path, part):
    try:
      return tensors.pop(f"{path}/{part}")
    except KeyError:
      raise ValueError(f"no tensor {path}/{part}: it was packed by other rules") from None

  for path, rule in table.items():
    if path not in shapes or rule.weights == "float":
      continue
    shape = shapes[path]
    if rule.weights == "lsq":
      integers = unpack_codes(take(path, "codes"), rule.weight_bits, shape).astype(np.float32)
      kernel = (integers + levels(rule.weight_bits)[0]) * take(path, "weight_step")
    else:
      kernel = take(path, "scale1") * unpack_signs(take(path, "signs1"), shape)
      if rule.bases == 2:
        kernel = kernel + take(path, "scale2") * unpack_signs(take(path, "signs2"), shape)
    params[f"{path}/kernel"] = kernel
  left_over = [name for name in (f"{path}/{part}" for path in table for part in KERNEL_PARTS) if name in tensors]
  if left_over:
    raise ValueError(f"tensor {left_over[0]} is left over: it was packed by other rules")
  learned = {name: tensors.pop(name) for name in _activation_names(table) & set(tensors)}
  params.update(tensors)
  return {name: flax.traverse_util.unflatten_dict(tree, sep="/")
          for name, tree in (("params", params), ("quant", learned))}


def packed_collections(tensors, table):
  """The tensors of `pack` as collections for layers that compute from packed weights (`layers.PackedLayer`).

  Returns:
    {"params", "quant", "packed"}: "packed" holds all tensors of the layers with quantized weights, the kernel's parts
    as well as "step", "zero_point" and "bias"; "quant" the steps and zero points of the others.
  """
  steps = _activation_names(table)
  trees = {"params": {}, "quant": {}, "packed": {}}
  for name, tensor in tensors.items():
    rule = table.get(name.rpartition("/")[0])
    packed = rule is not None and rule.weights != "float"
    trees["packed" if packed else "quant" if name in steps else "params"][name] = tensor
  return {name: flax.traverse_util.unflatten_dict(tree, sep="/") for name, tree in trees.items()}


def dequantized(table):
  """The table of a module that gets the variables of `unpack`: float weights, all else as before."""
  return {path: dataclasses.replace(rule, weights="float") for path, rule in table.items()}


def _flat(tree):
  return flax.traverse_util.flatten_dict(tree, sep="/")


def _activation_names(table):
  """Names of what `quant` may hold beside the parts of kernels."""
  names = set()
  for path, rule in table.items():
    more = ZERO_POINTS if rule.activation == "asymmetric" else ()
    names.update(f"{path}/{name}" for name in (*STEPS, *more, *(() if rule.plain else rivals.NAMES)))
  return names


def _scale(learned, path, name, kernel):
  """A kernel's scale or step, taken out of `learned` and floored as the quantizers floor it: float32 [cout]."""
  if f"{path}/{name}" not in learned:
    raise ValueError(f"quant/{path}/{name} is missing: pack {{'params', 'quant'}} with the table of the trained module")
  scale = learned.pop(f"{path}/{name}")
  if np.shape(scale) != kernel.shape[-1:]:
    raise ValueError(
        f"quant/{path}/{name} has shape {np.shape(scale)} for a kernel {kernel.shape}: kernels stacked by nn.scan or"
        " nn.vmap cannot be packed"
    )
  return np.asarray(positive(scale))

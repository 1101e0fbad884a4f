"""Size and operations of a model, counted from abstract shapes (BinaryDM's accounting: see ARCHITECTURE.md).

BOPs = multiply-accumulates x weight bits x activation bits; operations = BOPs / 64 + multiply-accumulates of the layers
that stay in float. Attention's products of activations are counted apart.
"""

import dataclasses
import math

import jax

from binarydm_jax.quant import packed_size, rivals


def weight_bits(rule):
  """Bits a weight: 32 in float, the number of bases, or the bits of LSQ."""
  if rule.weights == "float":
    return 32
  return rule.bases or rule.weight_bits


def quantized_bytes(layer, rule, remainder_bytes=4):
  """Bytes of what replaces one layer's float kernel and of what quantization adds: (weights, scales, activations).

  Activations: their steps and zero points, and what rivals' rules and the response learn (`quant.rivals`), all in
  float32.
  """
  steps = 4 * _activation_numbers(layer, rule)
  if not layer.size:
    return 0, 0, steps
  if rule.weights == "float":
    return remainder_bytes * layer.size, 0, steps
  channels = layer.kernel_shape[-1]
  if rule.bases:
    return rule.bases * packed_size(layer.size), 4 * channels * rule.bases, steps
  return packed_size(layer.size, rule.weight_bits), 4 * channels, steps


def _activation_numbers(layer, rule):
  operands = rivals.operands(layer.kind == "matmul")
  if rule.plain:
    return 0 if rule.act_bits == 32 else len(operands) * (2 if rule.activation == "asymmetric" else 1)
  shapes = list(rivals.response_shapes(rule, layer.output_shape[-1]).values())
  if rule.act_bits != 32:
    shapes += [()] * len(operands)
    for step in operands:
      shapes += rivals.activation_shapes(rule, layer.input_shape, step).values()
  return sum(map(math.prod, shapes))


@dataclasses.dataclass(frozen=True)
class Cost:
  """Of one model.

  Attributes:
    params: number of parameters of the full-precision network; fp32_bytes: four bytes each.
    packed_bytes: payload of the packed file (its header counts separately).
    macs: of convolutions and linears, one example; attention_macs: of attention's two products.
    ops: operations as the papers count them.
    true_weight_bits: mean bits of the quantized weights (32 if none is).
    binarized: number of weights that have sign bases; two_bases: those with two.
    layers: one dict a layer: path, shape, kind, rule, bits, activation, response, resolution, macs, bytes.
  """

  params: int
  fp32_bytes: int
  packed_bytes: int
  macs: int
  attention_macs: int
  ops: float
  true_weight_bits: float
  binarized: int
  two_bases: int
  layers: list

  def as_dict(self):
    return dataclasses.asdict(self)


def model_cost(layers, table, params, remainder_bytes=4):
  """Cost of a model.

  Args:
    layers: from `quant.inspect_layers`.
    table: path -> LayerRule, as deployed (`quant.deployed_table`).
    params: tree of the full-precision parameters, arrays or shapes.
    remainder_bytes: of a parameter that is not quantized: 4 in float32, 2 in bfloat16.
  """
  total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
  packed = remainder_bytes * (total - sum(layer.size for layer in layers))
  macs = attention_macs = ops = quantized = bits_in_all = 0
  rows = []
  for layer in layers:
    rule = table[layer.path]
    bits = weight_bits(rule)
    size = sum(quantized_bytes(layer, rule, remainder_bytes))
    packed += size
    if layer.kind == "matmul":
      attention_macs += layer.macs
    else:
      macs += layer.macs
      ops += layer.macs if rule.weights == "float" else layer.macs * bits * rule.act_bits / 64
      if rule.weights != "float":
        quantized += layer.size
        bits_in_all += layer.size * bits
    rows.append(
        dict(
            path=layer.path,
            kind=layer.kind,
            kernel_shape=list(layer.kernel_shape),
            rule=rule.weights,
            weight_bits=bits if layer.size else None,
            act_bits=rule.act_bits,
            activation=rule.activation,
            response=rule.response,
            resolution=layer.resolution,
            macs=layer.macs,
            packed_bytes=size,
        )
    )
  return Cost(
      params=total,
      fp32_bytes=4 * total,
      packed_bytes=packed,
      macs=macs,
      attention_macs=attention_macs,
      ops=ops,
      true_weight_bits=bits_in_all / quantized if quantized else 32.0,
      binarized=sum(layer.size for layer in layers if table[layer.path].bases),
      two_bases=sum(layer.size for layer in layers if table[layer.path].bases == 2),
      layers=rows,
  )


def nominal_bits(table):
  """The n of "WnAm": 1 where weights have sign bases (one or two: `true_weight_bits` tells), LSQ's bits, 32 if none.

  The layers next to input and output, which may have 8 bits, do not count: the smallest number stands.
  """
  return min((1 if rule.bases else weight_bits(rule) for rule in table.values()), default=32)

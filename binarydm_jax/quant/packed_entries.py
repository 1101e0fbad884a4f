"""Entries of a rule table for what computes from packed weights, by functions that are handed in."""

import dataclasses
from collections.abc import Callable

from binarydm_jax.quant.rules import LayerRule


@dataclasses.dataclass(frozen=True)
class PackedLayer:
  """Entry of a rule table for a layer that computes from packed weights, by a function that is handed in.

  Attributes:
    rule: the layer's LayerRule.
    backend: a name for `run`.
    run: (rule, tensors, x, residual, *, kernel_shape, stride, padding) -> y, with the layer's own tensors of the
      collection "packed" (see `packed_collections`), x float [batch, h, w, cin] (a dense layer: [1, 1, rows, cin]),
      residual None or as y, kernel_shape HWIO, padding ((top, bottom), (left, right)). It quantizes x and adds bias
      and residual; y is float [batch, h', w', cout].
  """

  rule: LayerRule
  backend: str
  run: Callable = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class PackedAttention:
  """Entry of a rule table for the product of queries and keys, where a function that is handed in does all attention.

  The module that owns the products asks for it, see `models.attention.attend`; the product itself knows only the rule.

  Attributes:
    rule: the product's LayerRule.
    backend: a name for `run`.
    run: (q, k, v, qk, av, qk_bits, av_bits) -> softmax(q k^T) v, like q [batch, n, heads, d]; k and
      v are [batch, m, heads, d], qk and av hold "step_a" and "step_b" of both products, if their bits are below 32,
      and, of asymmetric codes, "zero_point_a" and "zero_point_b".
  """

  rule: LayerRule
  backend: str
  run: Callable = dataclasses.field(repr=False)

"""Binarizers and quantizers for JAX, usable alone (needs jax and flax only).

Array functions (`one_basis`, `multi_basis`, `lsq`), flax layers (`QuantConv`, `QuantDense`, `QuantMatmul`), rules that
say which layer is quantized how, gates that change it over time, `binarize` for a module of your own, packing to bits.
"""

from binarydm_jax.quant.activations import fit_levels, initial_activation_step, lsq_activation
from binarydm_jax.quant.gates import Gates, LayerGate, gates_at, progressive_rings
from binarydm_jax.quant.inspection import LayerInfo, inspect_layers, resolve
from binarydm_jax.quant.layers import (
  PRODUCT,
  QuantConv,
  QuantDense,
  QuantMatmul,
  calibrate,
)
from binarydm_jax.quant.packed_entries import PackedAttention, PackedLayer
from binarydm_jax.quant.packed_variables import dequantized, pack, packed_collections, unpack
from binarydm_jax.quant.packing import pack_codes, pack_signs, packed_size, unpack_codes, unpack_signs
from binarydm_jax.quant.rules import (
  RIVALS,
  LayerRule,
  Rule,
  Rules,
  deployed_table,
  needs_timesteps,
  parse_override,
  preset,
)
from binarydm_jax.quant.ste import positive, round_ste, sign_ste
from binarydm_jax.quant.step_size import lsq
from binarydm_jax.quant.student import binarize, untrained
from binarydm_jax.quant.weights import (
  initial_scale1,
  initial_scale2,
  initial_weight_step,
  lsq_weight,
  multi_basis,
  one_basis,
)

__all__ = [
  "PRODUCT",
  "Gates",
  "LayerGate",
  "LayerInfo",
  "LayerRule",
  "PackedAttention",
  "PackedLayer",
  "RIVALS",
  "QuantConv",
  "QuantDense",
  "QuantMatmul",
  "Rule",
  "Rules",
  "binarize",
  "calibrate",
  "deployed_table",
  "dequantized",
  "fit_levels",
  "gates_at",
  "initial_activation_step",
  "initial_scale1",
  "initial_scale2",
  "initial_weight_step",
  "inspect_layers",
  "lsq",
  "lsq_activation",
  "lsq_weight",
  "multi_basis",
  "needs_timesteps",
  "one_basis",
  "pack",
  "pack_codes",
  "pack_signs",
  "packed_collections",
  "packed_size",
  "parse_override",
  "positive",
  "preset",
  "progressive_rings",
  "resolve",
  "round_ste",
  "sign_ste",
  "unpack",
  "unpack_codes",
  "unpack_signs",
  "untrained",
]

"""Gates: which ring a block belongs to, and what is on at each step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from binarydm_jax.quant import gates_at, progressive_rings

# The 25 blocks of LDM-4 on 64 x 64: smaller of each block's input and output size over 64.
LDM4 = (1,) * 3 + (1 / 2,) * 3 + (1 / 4,) * 3 + (1 / 8,) * 7 + (1 / 4,) * 3 + (1 / 2,) * 3 + (1,) * 3


def _gates(step, rings, *arguments):
  return gates_at(jnp.int32(step), rings, *arguments)


def test_blocks_ring_out_from_the_middle():
  assert progressive_rings("blocks", LDM4) == (
    12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12,
  )  # fmt: skip


def test_levels_are_five_groups_with_the_middle_block_first_and_the_deepest_level_next():
  rings = progressive_rings("levels", LDM4)
  assert rings == (4,) * 3 + (3,) * 3 + (2,) * 3 + (1,) * 3 + (0,) + (1,) * 3 + (2,) * 3 + (3,) * 3 + (4,) * 3


def test_levels_have_no_gap_where_the_middle_alone_is_deepest():
  assert progressive_rings("levels", (1, 0.5, 1)) == (1, 0, 1)


def test_none_is_one_ring():
  assert progressive_rings("none", LDM4) == (0,) * 25


def test_unknown_order_names_the_choices():
  with pytest.raises(ValueError, match="'rows' is not one of none, blocks, levels"):
    progressive_rings("rows", LDM4)


def test_blocks_switch_on_ring_by_ring_and_attention_last():
  rings = (2, 1, 0, 1, 2)
  expected = {0: [0, 0, 1, 0, 0], 1: [0, 1, 1, 1, 0], 2: [1] * 5, 3: [1] * 5, 1000: [1] * 5}
  for step, blocks in expected.items():
    gates = _gates(step, rings)
    np.testing.assert_array_equal(gates.blocks, blocks)
    assert gates.attention == (step >= 3)


def test_interval_stretches_the_rings():
  rings = (1, 0, 1)
  on = [(float(_gates(s, rings, 10).blocks[0]), float(_gates(s, rings, 10).attention)) for s in (9, 10, 19, 20)]
  assert on == [(0, 0), (1, 0), (1, 0), (1, 1)]


def test_without_progress_everything_is_on_from_the_first_step():
  gates = _gates(0, (0, 0, 0), 50)
  np.testing.assert_array_equal(gates.blocks, [1, 1, 1])
  assert gates.attention == 1


def test_second_basis_is_gone_from_the_transition_on():
  assert [float(_gates(step, (0,), 1, 100).second) for step in (0, 99, 100, 101)] == [1, 1, 0, 0]
  assert _gates(10**6, (0,)).second == 1


def test_second_basis_fades_before_the_transition():
  """Ten steps before it the share begins to fall, by a tenth a step."""
  shares = [float(_gates(step, (0,), 1, 100, 10).second) for step in (0, 90, 91, 95, 99, 100, 200)]
  np.testing.assert_allclose(shares, [1, 1, 0.9, 0.5, 0.1, 0, 0], rtol=1e-6)


def test_layer_gate_is_the_block_of_that_number():
  gates = _gates(1, (2, 1, 0), 1, 1)
  assert [float(gates.layer(i).on) for i in range(3)] == [0, 1, 1]
  assert gates.layer(0).attention == 0
  assert gates.layer(0).second == 0


def test_a_traced_step_compiles_once():
  traces = []

  @jax.jit
  def run(step):
    traces.append(step)
    return gates_at(step, progressive_rings("blocks", LDM4), 2, 7)

  counts = [(float(g.blocks.sum()), float(g.attention), float(g.second)) for g in map(run, range(0, 30, 2))]
  assert len(traces) == 1
  # 1, 3, 5 .. 25 blocks; attention at (12 + 1) * 2; the second basis until step 7.
  assert counts == [(min(1 + step, 25), step >= 26, step < 7) for step in range(0, 30, 2)]

"""Packing: the bit layout, sizes, round trips of any shape, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from binarydm_jax.quant import pack_codes, pack_signs, packed_size, unpack_codes, unpack_signs

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)


def test_layout_of_three_bit_codes():
  # 1 + (2 << 3) + (7 << 6) = 465 = 0xD1 + 256: the third code lies across both bytes, lowest bits first.
  np.testing.assert_array_equal(pack_codes(np.array([1, 2, 7]), 3), [0xD1, 0x01])


def test_layout_of_nibbles_and_bytes():
  np.testing.assert_array_equal(pack_codes(np.array([[0x1, 0x2], [0xF, 0x0]]), 4), [0x21, 0x0F])
  np.testing.assert_array_equal(pack_codes(np.array([0, 255, 7]), 8), [0, 255, 7])


def test_layout_of_signs_with_zero_positive_and_nan_negative():
  # Bits 0 1 1 0 1 1 0 1 from the lowest up: 2 + 4 + 16 + 32 + 128; the ninth opens a byte.
  x = np.array([-1.0, 0.0, 2.0, -3.0, 1.0, -0.0, np.nan, 0.5, 1.0])
  packed = pack_signs(x)
  assert packed.dtype == np.uint8
  np.testing.assert_array_equal(packed, [182, 1])
  np.testing.assert_array_equal(unpack_signs(packed, (9,)), [-1, 1, 1, -1, 1, 1, -1, 1, 1])


@pytest.mark.parametrize("count, bits, size", [(0, 1, 0), (1, 1, 1), (8, 1, 1), (9, 1, 2), (3, 3, 2), (5, 8, 5)])
def test_packed_size(count, bits, size):
  assert packed_size(count, bits) == size
  assert pack_codes(np.zeros(count, np.uint8), bits).shape == (size,)


@settings(max_examples=150, deadline=None)
@given(st.data(), SHAPES, st.integers(1, 8))
def test_codes_round_trip(data, shape, bits):
  codes = data.draw(hnp.arrays(np.int32, shape, elements=st.integers(0, 2**bits - 1)))
  packed = pack_codes(codes, bits)
  assert packed.nbytes == -(-codes.size * bits // 8)
  unpacked = unpack_codes(packed, bits, shape)
  assert unpacked.dtype == np.uint8 and unpacked.shape == shape
  np.testing.assert_array_equal(unpacked, codes)


@settings(max_examples=80, deadline=None)
@given(st.data(), SHAPES)
def test_signs_round_trip(data, shape):
  x = data.draw(hnp.arrays(np.float32, shape, elements=st.floats(-2, 2, width=32)))
  signs = unpack_signs(pack_signs(x), shape)
  assert signs.dtype == np.float32 and signs.shape == shape
  np.testing.assert_array_equal(signs, np.where(x < 0, -1, 1))


def test_signs_of_another_type():
  assert unpack_signs(np.array([2], np.uint8), (2,), np.int8).dtype == np.int8


@pytest.mark.parametrize("codes, bits", [([2], 1), ([0, 4], 2), ([-1], 3), ([256], 8)])
def test_codes_out_of_range_raise(codes, bits):
  with pytest.raises(ValueError, match=f"do not fit {bits} bits"):
    pack_codes(np.array(codes), bits)


@pytest.mark.parametrize("bytes_given", [0, 1, 3])
def test_wrong_number_of_bytes_raises(bytes_given):
  with pytest.raises(ValueError, match="9 codes of 1 bits fill 2 bytes"):
    unpack_codes(np.zeros(bytes_given, np.uint8), 1, (3, 3))

"""Signs and small integers as bits, little-endian within a byte: value i of width b fills bits b i .. b i + b - 1."""

import math

import numpy as np


def packed_size(count, bits=1):
  """Bytes that `count` codes of `bits` bits fill."""
  return -(-count * bits // 8)


def _check_bits(bits):
  if not 1 <= bits <= 8:
    raise ValueError(f"{bits} bits are not supported: use 1 to 8")


def pack_codes(codes, bits):
  """Integers in [0, 2^bits) of any shape -> uint8 [packed_size(size, bits)], in C order, the last byte zero-padded."""
  codes = np.asarray(codes)
  _check_bits(bits)
  if codes.dtype.kind not in "biu":
    raise ValueError(f"codes are {codes.dtype}, not integers")
  if codes.size and (codes.min() < 0 or codes.max() >= 2**bits):
    raise ValueError(f"codes {codes.min()}..{codes.max()} do not fit {bits} bits")
  flat = codes.reshape(-1).astype(np.uint8)
  planes = (flat[:, None] >> np.arange(bits, dtype=np.uint8)) & 1
  return np.packbits(planes.reshape(-1), bitorder="little")


def unpack_codes(packed, bits, shape):
  """The inverse of `pack_codes`: uint8 [shape]."""
  _check_bits(bits)
  count = math.prod(shape)
  packed = np.asarray(packed, np.uint8)
  if packed.shape != (packed_size(count, bits),):
    raise ValueError(f"{count} codes of {bits} bits fill {packed_size(count, bits)} bytes, not {packed.shape}")
  planes = np.unpackbits(packed, count=count * bits, bitorder="little").reshape(count, bits)
  return (planes << np.arange(bits, dtype=np.uint8)).sum(1, dtype=np.uint8).reshape(shape)


def pack_signs(x):
  """Any array -> uint8 [ceil(size / 8)]: bit 1 where x >= 0 (so sign(0) = +1), 0 elsewhere; NaN counts as negative."""
  return pack_codes((np.asarray(x) >= 0).astype(np.uint8), 1)


def unpack_signs(packed, shape, dtype=np.float32):
  """The inverse of `pack_signs`: +1 and -1 of `dtype` in `shape`."""
  return np.where(unpack_codes(packed, 1, shape) == 1, 1, -1).astype(dtype)

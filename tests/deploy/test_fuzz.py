"""Thousands of damaged packed files: each is refused in one line or loads with the same shapes, in little memory."""

import json
import random
import resource
import struct

import pytest

from binarydm_jax.deploy import PackedError, packed
from tests.deploy.test_packed import student, write

COUNT = 2500


@pytest.fixture(scope="module")
def good(tmp_path_factory):
  """(content, PackedFile) of a good file with signs, codes, floats and steps."""
  path = tmp_path_factory.mktemp("fuzz") / "good.safetensors"
  write(path, student("lmb", act_bits=4, edge_bits=8), remainder="bfloat16")
  return path.read_bytes(), packed.read(path)


NUMBERS = [-1, 0, 1, 2, 3, 7, 255, 2**16, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30,
           1.5, 1e9999, float("nan")]
VALUES = [*NUMBERS, None, True, "", "F32", "F64", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "x" * 50, [], {}, [1], [[1]],
          [2**62, 4], [0], {"dtype": "F32"}]


def nodes(tree, path=()):
  """Every place in nested dicts and lists, as a path of keys."""
  items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
  for key, value in items:
    yield (*path, key)
    yield from nodes(value, (*path, key))


def edit(rng, tree):
  """One change somewhere in a JSON tree, in place: a value replaced, taken away, added or renamed."""
  *parents, last = rng.choice(list(nodes(tree)))
  node = tree
  for key in parents:
    node = node[key]
  kind = rng.randrange(6)
  if kind == 0:
    del node[last]
  elif kind == 1 and isinstance(node, dict):
    node[str(last)[:-1] + rng.choice("0x/\n")] = node.pop(last)
  elif kind == 2 and isinstance(node, list):
    node.append(rng.choice(VALUES))
  elif kind == 3 and type(node[last]) is int:
    node[last] += rng.choice([-1, 1, 8, 2**32, 2**61])
  else:
    node[last] = rng.choice(VALUES)


def framed(header, payload):
  text = json.dumps(header).encode()
  return struct.pack("<Q", len(text)) + text + payload


def mutate(rng, content):
  """(kind, damaged content)."""
  length = struct.unpack("<Q", content[:8])[0]
  header, payload = content[8 : 8 + length], content[8 + length :]
  kind = rng.choice(["bits", "bits", "header bits", "length", "cut", "more", "header", "header", "description",
                     "description", "description"])
  data = bytearray(content)
  if kind in ("bits", "header bits"):
    end = len(data) if kind == "bits" else 8 + length
    for _ in range(rng.choice([1, 1, 2, 8])):
      data[rng.randrange(8, end)] ^= 1 << rng.randrange(8)
  elif kind == "length":
    data[:8] = struct.pack("<Q", rng.choice([n for n in NUMBERS if type(n) is int and 0 <= n < 2**64]
                                            + [length + 1, length - 1, len(content), 100_000_000]))
  elif kind == "cut":
    del data[rng.randrange(len(data)) :]
  elif kind == "more":
    data += bytes(rng.randrange(1, 300))
  elif kind == "header":
    tree = json.loads(header)
    for _ in range(rng.choice([1, 1, 3])):
      edit(rng, tree)
    data = framed(tree, payload)
  else:
    tree = json.loads(header)
    described = json.loads(tree["__metadata__"]["description"])
    for _ in range(rng.choice([1, 1, 3])):
      edit(rng, described)
    tree["__metadata__"]["description"] = json.dumps(described)
    data = framed(tree, payload)
  return kind, bytes(data)


def test_damaged_files(good, tmp_path, monkeypatch):
  """2,500 mutations of bits, lengths, headers and descriptions: a PackedError of one line that names the file, or the
  shapes of the good file; never another exception, and never a large allocation."""
  content, wanted = good
  shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in wanted.tensors.items()}
  # Tracing the network takes most of the time: it is done for the first of the descriptions that come so far.
  traced, real = [], packed._parameters

  def parameters(model, rules, input_shape):
    if len(traced) < 8 or (model, rules, input_shape) in traced:
      traced.append((model, rules, input_shape))
      return real(model, rules, input_shape)
    raise ValueError("not traced in this test")

  monkeypatch.setattr(packed, "_parameters", parameters)
  rng = random.Random(0)
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  bad, outcomes = tmp_path / "bad.safetensors", {}
  for i in range(COUNT):
    kind, damaged = mutate(rng, content)
    bad.write_bytes(damaged)
    try:
      file = packed.read(bad)
      outcome = "loads"
      assert {name: (tensor.shape, tensor.dtype) for name, tensor in file.tensors.items()} == shapes, (i, kind)
    except PackedError as error:
      outcome, message = "refused", str(error)
      assert message.startswith(str(bad)) and "\n" not in message and len(message) < 600, (i, kind, message)
    except Exception as error:
      pytest.fail(f"mutation {i} ({kind}): {type(error).__name__}: {error}")
    outcomes[kind, outcome] = outcomes.get((kind, outcome), 0) + 1
  # KiB on Linux; tracing itself takes some tens of MiB.
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 2**10
  # The fuzz reaches both ends: bits of the payload are only other weights, most of the rest is broken.
  assert outcomes["bits", "loads"] > 50 and outcomes["bits", "refused"] > 50
  for kind in ("header bits", "length", "cut", "more", "header", "description"):
    assert outcomes[kind, "refused"] > 100, outcomes

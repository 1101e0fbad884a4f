"""The configs of the paper's settings build without data or weights, and the README's table of them is true."""

import importlib
import re
from pathlib import Path

import pytest

from binarydm_jax.modes import costs
from binarydm_jax.training.problem import build

ROOT = Path(__file__).parents[1]
TABLE = re.findall(
  r"^\| `configs/(\w+)\.py`.* \| ([\d,]+) \| ([\d.]+) MiB \| ([\d.]+) MiB \| ([\d.]+) G \| ([\d.]+) G \|$",
  (ROOT / "README.md").read_text(),
  re.MULTILINE,
)


def test_every_network_is_in_the_table():
  assert [row[0] for row in TABLE] == ["lsun_bedrooms_ldm4", "lsun_churches_ldm8", "imagenet_ldm4", "cifar10_ddim"]


@pytest.mark.parametrize("row", [
  pytest.param(row, id=row[0], marks=[pytest.mark.slow] * (row[0] in ("imagenet_ldm4", "lsun_churches_ldm8")))
  for row in TABLE
])  # fmt: skip
def test_figures(row):
  """Parameters, sizes, multiply-accumulates and operations as printed."""
  name, params, float_mib, packed_mib, macs, ops = row
  problem = build(importlib.import_module(f"configs.{name}").get_config(), with_data=False)
  _, student = costs(problem)
  assert f"{student.params:,}" == params
  assert f"{student.fp32_bytes / 2**20:.2f}" == float_mib
  assert f"{student.packed_bytes / 2**20:.2f}" == packed_mib
  assert f"{student.macs / 1e9:.2f}" == macs
  assert f"{student.ops / 1e9:.{len(ops.split('.')[1])}f}" == ops


def test_the_same_network_on_ffhq():
  """FFHQ's config differs from LSUN-Bedrooms' in the data alone."""
  bedrooms, ffhq = (importlib.import_module(f"configs.{name}").get_config() for name in
                    ("lsun_bedrooms_ldm4", "ffhq_ldm4"))
  assert bedrooms.data.source != ffhq.data.source
  bedrooms.data.source = ffhq.data.source
  assert bedrooms.to_dict() == ffhq.to_dict()

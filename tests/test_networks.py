"""Samples of a network, streamed to disk: resumption, protocols, the first stage, what is left in the folder."""

import dataclasses
import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from binarydm_jax import networks
from configs import base
from tests.evaluation.test_sampling import SCHEDULE, unet

ROOT = Path(__file__).parents[1]


@dataclasses.dataclass
class Stage:
  """Enlarges latents four times."""

  sha256: str = "ab"
  scale_factor: float = 1.0

  def decode(self, latents, batch_size):
    return latents.repeat(2, axis=1).repeat(2, axis=2)


@pytest.fixture(scope="module")
def network():
  return networks.Network("student", *unet(), None, SCHEDULE, "eps", (4, 4, 1))


def fields(**changes):
  sample = base.get_config().sample
  sample.update({"steps": 3, "batch_size": 4, **changes})
  return sample


def stream(network, workdir, count=10, **changes):
  return networks.stream_samples(network, workdir, "student", fields(**changes), count, 4)


@pytest.fixture
def drawn(monkeypatch):
  """The (first, count) of every batch that is drawn."""
  calls, real = [], networks.make_draw

  def make_draw(*args, **kwargs):
    draw = real(*args, **kwargs)
    return lambda first, count: calls.append((first, count)) or draw(first, count)

  monkeypatch.setattr(networks, "make_draw", make_draw)
  return calls


@pytest.fixture
def drawn_cheaply(monkeypatch):
  """The same, of images by another hand: nothing is compiled."""
  calls = []

  def draw(first, count):
    calls.append((first, count))
    return np.random.default_rng(first).uniform(-1, 1, (count, 4, 4, 1)).astype(np.float32)

  monkeypatch.setattr(networks, "make_draw", lambda *args, **kwargs: draw)
  return calls


def break_off(monkeypatch, network, workdir, after):
  """A run that stops as the machine is taken away after so many batches."""
  real, added = networks.SampleWriter.add, []

  def add(*args):
    if len(added) == after:
      raise KeyboardInterrupt
    added.append(real(*args))

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(networks.SampleWriter, "add", add)
    stream(network, workdir)


def test_broken_off_and_resumed(network, tmp_path, drawn, monkeypatch, capsys):
  """Finished batches are not drawn again, and the file is that of one run; a third run draws nothing."""
  whole, _ = stream(network, tmp_path / "whole")
  assert drawn == [(0, 4), (4, 4), (8, 2)] and whole.shape == (10, 4, 4, 1) and whole.std() > 20
  break_off(monkeypatch, network, tmp_path, after=2)
  assert not (tmp_path / "samples" / "student.npz").exists()
  drawn.clear()
  resumed, speed = stream(network, tmp_path)
  assert drawn == [(8, 2)] and speed > 0
  files = [folder / "samples" / "student.npz" for folder in (tmp_path / "whole", tmp_path)]
  assert files[0].read_bytes() == files[1].read_bytes()
  with np.load(files[1]) as file:
    np.testing.assert_array_equal(file["arr_0"], resumed)
    assert file["arr_1"].tolist() == [i % 3 for i in range(10)]
  assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == ["student.json", "student.npz", "student.png"]
  grid = Image.open(io.BytesIO((tmp_path / "samples" / "student.png").read_bytes()))
  assert grid.size[0] > 4 * 32
  drawn.clear()
  assert stream(network, tmp_path)[1] == speed and drawn == []


@pytest.mark.parametrize("change", ["seed", "steps", "sampler", "guidance", "weights", "model", "count", "first stage"])
def test_changed_protocol_starts_anew(network, tmp_path, drawn_cheaply, monkeypatch, change):
  """Whatever the samples depend on: all are drawn again."""
  break_off(monkeypatch, network, tmp_path, after=2)
  drawn_cheaply.clear()
  count, changes = 10, {}
  if change in ("seed", "steps"):
    changes = {change: 2}
  elif change == "sampler":
    changes = {"sampler": "plms"}
  elif change == "guidance":
    changes = {"guidance": 1.5}
  elif change == "weights":
    variables = {"params": {**network.variables["params"]}}
    variables["params"]["out_conv"] = {k: v + np.float32(1e-3) for k, v in variables["params"]["out_conv"].items()}
    network = dataclasses.replace(network, variables=variables)
  elif change == "model":
    network = dataclasses.replace(network, model=network.model.clone(dtype=jnp.bfloat16))
  elif change == "count":
    count = 8
  else:
    network = dataclasses.replace(network, first_stage=Stage())
  images, _ = stream(network, tmp_path, count, **changes)
  assert sum(size for _, size in drawn_cheaply) == count and drawn_cheaply[0] == (0, 4)
  assert images.shape == (count, *((8, 8, 1) if change == "first stage" else (4, 4, 1)))


def test_batch_size_is_no_part_of_the_protocol(network, tmp_path, drawn_cheaply, monkeypatch):
  """A run that did not fit into memory goes on in smaller batches."""
  break_off(monkeypatch, network, tmp_path, after=1)
  drawn_cheaply.clear()
  stream(network, tmp_path, batch_size=3)
  assert drawn_cheaply == [(4, 3), (7, 3)]


def test_protocol_is_one_line_of_facts(network):
  """JSON, the same for the same network, with no memory address in what is hashed."""
  protocol = network.protocol(fields())
  assert json.loads(json.dumps(protocol))["sampler"] == "ddim" and len(protocol["network_sha256"]) == 64
  assert network.protocol(fields()) == protocol
  assert " at 0x" not in repr(network.model)


PROCESS = """
import sys, jax
address, index, folder = sys.argv[1:]
jax.distributed.initialize(address, 2, int(index))
from binarydm_jax.mesh import make_mesh, put_replicated
from tests.test_networks import SCHEDULE, networks, np, stream, unet

assert (len(jax.devices()), jax.local_device_count()) == (4, 2)
model, variables = unet()
variables = put_replicated(variables, make_mesh())  # over all devices, as a checkpoint gives them
images, _ = stream(networks.Network("student", model, variables, None, SCHEDULE, "eps", (4, 4, 1)), folder)
np.save(f"{folder}/{index}.npy", images)
"""


@pytest.mark.slow
def test_two_processes(network, tmp_path):
  """Two processes of two devices each share the batches; both see the file that one process alone would write."""
  alone, _ = stream(network, tmp_path / "alone")
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    address = f"localhost:{probe.getsockname()[1]}"
  flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}
  command = [sys.executable, "-c", PROCESS, address]
  started = [
      subprocess.Popen([*command, index, str(tmp_path)], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
      for index in "01"
  ]
  try:
    for process in started:
      assert process.wait(timeout=300) == 0, process.stderr.read()[-3000:]
  finally:
    for process in started:
      process.kill()
      process.stderr.close()
  for index in "01":
    # A rounding apart: a batch of four over two devices is another program.
    np.testing.assert_allclose(np.load(tmp_path / f"{index}.npy").astype(int), alone.astype(int), atol=1)

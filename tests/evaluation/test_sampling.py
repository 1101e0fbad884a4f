"""Images from a network: rounding, batches, devices, labels, guidance, and that options reach the sampler."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from binarydm_jax.diffusion import SAMPLERS, guided, make_sampler, make_schedule
from binarydm_jax.evaluation.sampling import generate, make_draw, to_uint8

ROOT = Path(__file__).parents[2]
SCHEDULE = make_schedule("linear", 20, 1e-2, 0.3)


class Label:
  """Predicts x0 = label / 10 for every pixel; `variables` is added."""

  num_classes = 3

  def apply(self, variables, x, timesteps, labels, gates):
    return jnp.zeros_like(x) + labels[:, None, None, None] / 10 + variables, ()


class Plain:
  """A smooth unconditional function."""

  num_classes = 0

  def apply(self, variables, x, timesteps, labels, gates):
    assert labels is None
    return jnp.tanh(x) * (0.3 + timesteps[:, None, None, None] / 40) * variables, ()


def test_to_uint8():
  """-1 -> 0, 1 -> 255, beyond is clipped, 127.5 goes to the even 128, and every grey level survives a round trip."""
  out = to_uint8(jnp.array([-1.0, 1.0, -3.0, 2.0, 0.0, -1 + 0.49 / 127.5, -1 + 0.51 / 127.5]))
  assert out.dtype == jnp.uint8 and out.tolist() == [0, 255, 0, 255, 128, 0, 1]
  grey = np.arange(256)
  np.testing.assert_array_equal(to_uint8(jnp.asarray(grey / 127.5 - 1, jnp.float32)), grey)


def test_batches_do_not_matter_and_the_last_is_cut():
  """10 images in batches of 4 (the last one cut), of 10 and of 64 are the same."""
  sampler = make_sampler(Plain(), SCHEDULE, "eps", (2, 2, 1), steps=4, eta=0.5, clip=False)
  out = generate(sampler, jnp.float32(1), 10, 7, 4)
  assert out.shape == (10, 2, 2, 1) and out.dtype == np.float32
  for batch_size in (10, 64):
    np.testing.assert_allclose(generate(sampler, jnp.float32(1), 10, 7, batch_size), out, rtol=1e-5, atol=1e-6)
  # Asking for fewer gives the first of them; another seed gives others.
  np.testing.assert_allclose(generate(sampler, jnp.float32(1), 3, 7, 4), out[:3], rtol=1e-5, atol=1e-6)
  assert np.abs(generate(sampler, jnp.float32(1), 10, 8, 4) - out).min() > 1e-5


@pytest.mark.parametrize("sampler, spacing", [("ddim", "leading"), ("ddpm", "linspace")])
def test_labels_are_balanced_across_batches(sampler, spacing):
  """Image i has label i % num_classes, also where batches do not hold whole rounds."""
  sample = make_sampler(Label(), SCHEDULE, "x0", (2, 2, 1), sampler, steps=5, spacing=spacing)
  out = generate(sample, jnp.float32(0), 10, 0, 4, num_classes=3)
  np.testing.assert_allclose(out[:, 0, 0, 0], [0, 0.1, 0.2, 0, 0.1, 0.2, 0, 0.1, 0.2, 0], atol=1e-5)


def test_options_reach_the_sampler():
  """Every option changes the images; variables are an argument, not a constant."""
  base = dict(sampler="ddim", steps=4, eta=0.0, clip=False, spacing="ldm")
  changes = [{}, {"eta": 0.9}, {"clip": True}, {"steps": 5}, {"spacing": "leading"}, {"dynamic_threshold": 0.5}]
  changes += [{"sampler": name} for name in SAMPLERS if name != "ddim"]
  outputs = [
      generate(make_sampler(Plain(), SCHEDULE, "eps", (2, 2, 1), **{**base, **change}), jnp.float32(1), 4, 0, 4)
      for change in changes
  ]
  for i, a in enumerate(outputs):
    assert all(np.abs(a - b).max() > 1e-3 for b in outputs[:i])
  sample = make_sampler(Label(), SCHEDULE, "x0", (1, 1, 1), steps=2, spacing="leading")
  assert [float(generate(sample, jnp.float32(v), 1, 0, 1, 3)[0, 0, 0, 0]) for v in (0.2, 0.6)] == pytest.approx(
      [0.2, 0.6], abs=1e-5)


def test_gates_reach_the_model():
  """What is given as gates arrives there."""

  class Gated:
    num_classes = 0

    def apply(self, variables, x, timesteps, labels, gates):
      return jnp.full_like(x, gates), ()

  sample = make_sampler(Gated(), SCHEDULE, "x0", (1, 1, 1), steps=2, spacing="leading")
  out = generate(sample, {}, 2, 0, 2, gates=jax.numpy.float32(0.3))
  np.testing.assert_allclose(out, 0.3, atol=1e-5)


def test_draw_from_any_sample_on():
  """Samples 5 .. 11 of a run by themselves are those of the whole run; compiled ahead or not."""
  sampler = make_sampler(Plain(), SCHEDULE, "eps", (2, 2, 1), "plms", steps=4)
  whole = generate(sampler, jnp.float32(1), 12, 7, 12)
  for ahead in (False, True):
    draw = make_draw(sampler, jnp.float32(1), 4, 7, ahead=ahead)
    np.testing.assert_allclose(draw(5, 7), whole[5:], rtol=1e-5, atol=1e-6)


class Guided:
  """Predicts 1 for the null class 3 and 2 + label for the others; keeps what it was called with."""

  num_classes, null_class = 3, True

  def __init__(self):
    self.calls = []

  def apply(self, variables, x, timesteps, labels, gates):
    self.calls.append((x, timesteps, labels, gates))
    value = jnp.where(labels == 3, 1.0, 2.0 + labels)
    return jnp.zeros_like(x) + value[:, None] * variables, ()


def test_guidance():
  """unconditional + w (conditional - unconditional) from one batch of 2 n; at 1 the network runs on n."""
  model, x, t, labels = Guided(), jnp.array([[5.0], [6.0], [7.0]]), jnp.array([1, 2, 3]), jnp.array([0, 1, 2])
  out = guided(model, 3.0)(2.0, x, t, labels, "gates")
  np.testing.assert_allclose(out[:, 0], [2 + 3 * (4 - 2), 2 + 3 * (6 - 2), 2 + 3 * (8 - 2)])
  ((both, timesteps, classes, gates),) = model.calls
  assert both[:, 0].tolist() == [5, 5, 6, 6, 7, 7] and timesteps.tolist() == [1, 1, 2, 2, 3, 3]
  assert classes.tolist() == [0, 3, 1, 3, 2, 3] and gates == "gates"
  np.testing.assert_allclose(guided(model, 1)(2.0, x, t, labels, None)[:, 0], [4, 6, 8])
  assert len(model.calls[1][0]) == 3
  np.testing.assert_allclose(guided(model, 0.0)(2.0, x, t, labels, None)[:, 0], [2, 2, 2])


def test_guidance_needs_a_null_class():
  model = Guided()
  model.null_class = False
  with pytest.raises(ValueError, match="sample.guidance is 2.0, and the network has no null class; set it to 1"):
    guided(model, 2.0)
  with pytest.raises(ValueError, match="no null class"):
    guided(Plain(), 2.0)


def unet():
  """A class-conditional U-Net of a few thousand weights and random variables for it."""
  from binarydm_jax.models import UNet

  model = UNet(1, 8, (1,), 0, (), num_heads=2, norm_groups=4, num_classes=3, null_class=True)
  rng = np.random.default_rng(0)
  inputs = jnp.zeros((1, 4, 4, 1)), jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32)
  shapes = jax.eval_shape(lambda *x: model.init(jax.random.key(0), *x), *inputs)
  return model, jax.tree.map(lambda leaf: np.float32(rng.normal(0, 0.2, leaf.shape)), shapes)


DEVICES = """
import jax, numpy as np
from binarydm_jax.diffusion import make_sampler
from binarydm_jax.evaluation import heldout
from binarydm_jax.evaluation.sampling import make_draw
from binarydm_jax.mesh import make_mesh
from tests.evaluation.test_sampling import SCHEDULE, unet

assert len(jax.devices()) == 4
model, variables = unet()
sampler = make_sampler(model, SCHEDULE, "eps", (4, 4, 1), steps=3, eta=0.5, guidance=2.0)
runs = {}
for devices, batch_size in ((1, 64), (4, 16), (4, 10)):
  draw = make_draw(sampler, variables, batch_size, 5, 3, devices=jax.devices()[:devices])
  runs[devices, batch_size] = draw(0, 64)
for name, images in runs.items():
  assert images.shape == (64, 4, 4, 1), name
  np.testing.assert_allclose(images, runs[1, 64], atol=1e-5, err_msg=str(name))
images, labels = np.random.default_rng(0).integers(0, 256, (7, 4, 4, 1), np.uint8), np.arange(7) % 3
losses = []
for devices in (1, 4):
  heldout.make_mesh = lambda found: make_mesh(found[:devices])
  losses.append(heldout.heldout_loss(model, variables, None, images, labels, SCHEDULE, "eps", 3, batch_size=10)[0])
np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
print("equal")
"""


def test_devices_and_batches_do_not_matter():
  """A U-Net with guidance on 1 device at once, and on 4 in batches of 16 and of 10, which 4 do not divide; and its
  held-out loss."""
  flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}
  done = subprocess.run([sys.executable, "-c", DEVICES], cwd=ROOT, env=environment, capture_output=True, text=True)
  assert done.stdout.strip().endswith("equal"), done.stderr[-3000:]

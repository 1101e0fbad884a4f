"""InceptionV3 against an independent PyTorch one on random weights; the published file's names; wrong files."""

import hashlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file

from binarydm_jax.evaluation import features, inception_weights
from binarydm_jax.evaluation.inception import resize_like_tf1
from binarydm_jax.importers.mapping import CheckpointError

# The layers of the PyTorch port, written down independently of ours: name -> (in, out, kernel).
STEM = {"Conv2d_1a_3x3": (3, 32, 3, 3), "Conv2d_2a_3x3": (32, 32, 3, 3), "Conv2d_2b_3x3": (32, 64, 3, 3),
        "Conv2d_3b_1x1": (64, 80, 1, 1), "Conv2d_4a_3x3": (80, 192, 3, 3)}  # fmt: skip


def block_a(c, pool):
  return {"branch1x1": (c, 64, 1, 1), "branch5x5_1": (c, 48, 1, 1), "branch5x5_2": (48, 64, 5, 5),
          "branch3x3dbl_1": (c, 64, 1, 1), "branch3x3dbl_2": (64, 96, 3, 3), "branch3x3dbl_3": (96, 96, 3, 3),
          "branch_pool": (c, pool, 1, 1)}  # fmt: skip


def block_c(i):
  return {"branch1x1": (768, 192, 1, 1), "branch7x7_1": (768, i, 1, 1), "branch7x7_2": (i, i, 1, 7),
          "branch7x7_3": (i, 192, 7, 1), "branch7x7dbl_1": (768, i, 1, 1), "branch7x7dbl_2": (i, i, 7, 1),
          "branch7x7dbl_3": (i, i, 1, 7), "branch7x7dbl_4": (i, i, 7, 1), "branch7x7dbl_5": (i, 192, 1, 7),
          "branch_pool": (768, 192, 1, 1)}  # fmt: skip


def block_e(c):
  return {"branch1x1": (c, 320, 1, 1), "branch3x3_1": (c, 384, 1, 1), "branch3x3_2a": (384, 384, 1, 3),
          "branch3x3_2b": (384, 384, 3, 1), "branch3x3dbl_1": (c, 448, 1, 1), "branch3x3dbl_2": (448, 384, 3, 3),
          "branch3x3dbl_3a": (384, 384, 1, 3), "branch3x3dbl_3b": (384, 384, 3, 1),
          "branch_pool": (c, 192, 1, 1)}  # fmt: skip


BLOCKS = {
  "Mixed_5b": block_a(192, 32), "Mixed_5c": block_a(256, 64), "Mixed_5d": block_a(288, 64),
  "Mixed_6a": {"branch3x3": (288, 384, 3, 3), "branch3x3dbl_1": (288, 64, 1, 1), "branch3x3dbl_2": (64, 96, 3, 3),
               "branch3x3dbl_3": (96, 96, 3, 3)},
  "Mixed_6b": block_c(128), "Mixed_6c": block_c(160), "Mixed_6d": block_c(160), "Mixed_6e": block_c(192),
  "Mixed_7a": {"branch3x3_1": (768, 192, 1, 1), "branch3x3_2": (192, 320, 3, 3), "branch7x7x3_1": (768, 192, 1, 1),
               "branch7x7x3_2": (192, 192, 1, 7), "branch7x7x3_3": (192, 192, 7, 1),
               "branch7x7x3_4": (192, 192, 3, 3)},
  "Mixed_7b": block_e(1280), "Mixed_7c": block_e(2048),
}  # fmt: skip
CONVS = STEM | {f"{block}.{name}": shape for block, convs in BLOCKS.items() for name, shape in convs.items()}


def random_weights():
  """name -> tensor under the published names, with batch norms that are not the identity."""
  generator = torch.Generator().manual_seed(0)
  normal = lambda *shape: torch.randn(shape, generator=generator)
  uniform = lambda n: torch.rand(n, generator=generator)
  tensors = {}
  for name, (inner, outer, height, width) in CONVS.items():
    tensors[f"{name}.conv.weight"] = normal(outer, inner, height, width) * (2 / (inner * height * width)) ** 0.5
    tensors[f"{name}.bn.weight"] = 0.7 + 0.6 * uniform(outer)
    tensors[f"{name}.bn.bias"] = 0.2 * normal(outer)
    tensors[f"{name}.bn.running_mean"] = 0.2 * normal(outer)
    tensors[f"{name}.bn.running_var"] = 0.5 + uniform(outer)
    tensors[f"{name}.bn.num_batches_tracked"] = torch.tensor(7)
  tensors["fc.weight"] = normal(1008, 2048) * 0.05
  tensors["fc.bias"] = normal(1008)
  return tensors


class Reference:
  """The network as functions of torch, in NCHW and float64."""

  def __init__(self, tensors):
    self.tensors = {name: value.double() for name, value in tensors.items()}

  def conv(self, name, x, stride=1, pad=True):
    get = lambda leaf: self.tensors[f"{name}.{leaf}"]
    kernel = get("conv.weight")
    padding = (kernel.shape[2] // 2, kernel.shape[3] // 2) if pad else 0
    x = F.conv2d(x, kernel, stride=stride, padding=padding)
    statistics = [get(f"bn.{leaf}") for leaf in ("running_mean", "running_var", "weight", "bias")]
    return F.relu(F.batch_norm(x, *statistics, eps=1e-3))

  def chain(self, block, names, x, last_stride=1):
    for name in names:
      strided = last_stride == 2 and name == names[-1]
      x = self.conv(f"{block}.{name}", x, 2 if strided else 1, not strided)
    return x

  def __call__(self, images):
    """images [n, h, w, 3] uint8 -> pooled, spatial (as ADM flattens it), logits without bias; numpy."""
    x = torch.as_tensor(resize_by_hand(images)).permute(0, 3, 1, 2)
    x = (x - 128) / 128
    x = self.conv("Conv2d_1a_3x3", x, 2, pad=False)
    x = self.conv("Conv2d_2b_3x3", self.conv("Conv2d_2a_3x3", x, pad=False))
    x = self.conv("Conv2d_4a_3x3", self.conv("Conv2d_3b_1x1", F.max_pool2d(x, 3, 2)), pad=False)
    x = F.max_pool2d(x, 3, 2)
    mean = lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    for block in BLOCKS:
      run = lambda *names, x=x, block=block, **kwargs: self.chain(block, names, x, **kwargs)
      if block < "Mixed_6":
        parts = [run("branch1x1"), run("branch5x5_1", "branch5x5_2"),
                 run(*(f"branch3x3dbl_{i}" for i in (1, 2, 3))), run("branch_pool", x=mean(x))]  # fmt: skip
      elif block == "Mixed_6a":
        parts = [run("branch3x3", last_stride=2), run(*(f"branch3x3dbl_{i}" for i in (1, 2, 3)), last_stride=2),
                 F.max_pool2d(x, 3, 2)]  # fmt: skip
      elif block < "Mixed_7":
        parts = [run("branch1x1"), run(*(f"branch7x7_{i}" for i in (1, 2, 3))),
                 run(*(f"branch7x7dbl_{i}" for i in (1, 2, 3, 4, 5))), run("branch_pool", x=mean(x))]  # fmt: skip
      elif block == "Mixed_7a":
        parts = [run("branch3x3_1", "branch3x3_2", last_stride=2),
                 run(*(f"branch7x7x3_{i}" for i in (1, 2, 3, 4)), last_stride=2), F.max_pool2d(x, 3, 2)]  # fmt: skip
      else:
        three, double = run("branch3x3_1"), run("branch3x3dbl_1", "branch3x3dbl_2")
        pool = F.max_pool2d(x, 3, 1, 1) if block == "Mixed_7c" else mean(x)
        parts = [run("branch1x1"), run("branch3x3_2a", x=three), run("branch3x3_2b", x=three),
                 run("branch3x3dbl_3a", x=double), run("branch3x3dbl_3b", x=double),
                 run("branch_pool", x=pool)]  # fmt: skip
      x = torch.cat(parts, 1)
      if block == "Mixed_6d":
        spatial = parts[0].permute(0, 2, 3, 1)[..., :7].reshape(len(x), -1)
    pooled = x.mean((2, 3))
    return pooled.numpy(), spatial.numpy(), (pooled @ self.tensors["fc.weight"].T).numpy()


def resize_by_hand(images, side=299):
  """images [n, h, w, c] -> [n, side, side, c] float64: each pixel from its four neighbours."""
  n, h, w, c = images.shape
  rows, columns = np.arange(side) * h / side, np.arange(side) * w / side
  y, x = rows.astype(int), columns.astype(int)
  dy, dx = (rows - y)[:, None, None], (columns - x)[None, :, None]
  y1, x1 = np.minimum(y + 1, h - 1), np.minimum(x + 1, w - 1)
  images = images.astype(np.float64)
  pixel = lambda rows, columns: images[:, rows][:, :, columns]
  top = pixel(y, x) * (1 - dx) + pixel(y, x1) * dx
  bottom = pixel(y1, x) * (1 - dx) + pixel(y1, x1) * dx
  return top * (1 - dy) + bottom * dy


@pytest.fixture(scope="module")
def weights():
  return random_weights()


@pytest.fixture(scope="module")
def path(weights, tmp_path_factory):
  path = tmp_path_factory.mktemp("inception") / "weights.pth"
  torch.save(weights, path)
  return path


@pytest.fixture(scope="module")
def network(path):
  return features.load("inception", path)


@pytest.fixture(scope="module")
def images():
  images = np.random.default_rng(0).integers(0, 256, (3, 20, 24, 3)).astype(np.uint8)
  images[2] = images[2, ..., :1]  # grey
  return images


@pytest.fixture(scope="module")
def outputs(network, images):
  return network.outputs(images, batch_size=2)


def relative_error(ours, theirs):
  return np.abs(ours - theirs).max() / np.abs(theirs).max()


@pytest.mark.slow  # test_torch_fidelity.py compares with the published code
def test_parity_with_pytorch(outputs, weights, images):
  """Pooled and spatial features and probabilities, from images that are resized, in a batch that is filled up."""
  pooled, spatial, logits = Reference(weights)(images)
  assert outputs.features.shape == (3, 2048) and outputs.spatial.shape == (3, 2023)
  assert {part.dtype for part in outputs} == {np.dtype(np.float32)}
  assert 0.01 < np.std(pooled, axis=0).mean() and np.std(spatial, axis=0).mean() > 0.01  # images can be told apart
  assert relative_error(outputs.features, pooled) < 1e-4
  assert relative_error(outputs.spatial, spatial) < 1e-4
  expected = np.exp(logits - logits.max(axis=1, keepdims=True))
  np.testing.assert_allclose(outputs.probabilities, expected / expected.sum(axis=1, keepdims=True), atol=1e-4)


@pytest.mark.slow
def test_grey_images_are_repeated(network, outputs, images):
  grey = network.outputs(images[2:, ..., :1], batch_size=2)
  for a, b in zip(grey, outputs):
    np.testing.assert_allclose(a[0], b[2], rtol=1e-5, atol=1e-6)


def test_network_describes_itself(network, path):
  assert network.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
  assert (network.name, network.dim, network.spatial_dim, network.image_shape) == ("inception", 2048, 2023, None)
  assert network.takes((64, 64, 3)) and network.takes((32, 48, 1)) and not network.takes((64, 64, 4))


@pytest.mark.parametrize("shape", [(1, 5, 7, 1), (2, 299, 299, 2), (1, 400, 600, 1)])
def test_resize(shape):
  images = np.random.default_rng(1).integers(0, 256, shape).astype(np.float32)
  resized = np.asarray(resize_like_tf1(images))
  # A place of 299 is a float32, as in TensorFlow: 1e-7 of 600 pixels off, times a step of 255.
  np.testing.assert_allclose(resized, resize_by_hand(images), atol=0.02)
  if shape[1] == 299:
    np.testing.assert_array_equal(resized, images)


def test_resize_by_hand():
  """Two pixels to five: read at 0, 0.4, 0.8, 1.2, 1.6, and nothing lies beyond the last one."""
  resized = np.asarray(resize_like_tf1(np.array([[[[0.0], [10.0]]]], np.float32), side=5))
  np.testing.assert_allclose(resized[0, :, :, 0], np.tile([0, 4, 8, 10, 10], (5, 1)), rtol=1e-6)


def test_names_of_the_published_file():
  """94 convolutions with 5 tensors each, and the last layer's weight."""
  shapes = inception_weights.shapes()
  theirs = {entry.theirs[0] for entry in inception_weights.entries(shapes)}
  leaves = ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
  assert theirs == {f"{name}.{leaf}" for name in CONVS for leaf in leaves} | {"fc.weight"}
  assert len(CONVS) == 94 and len(theirs) == 471


def test_safetensors_without_torch(weights, tmp_path, network):
  save_file({name: value.numpy() for name, value in weights.items()}, tmp_path / "weights.safetensors")
  params, _ = inception_weights.read(tmp_path / "weights.safetensors")
  kernel = params["Mixed_7c"]["branch3x3_2a"]["conv"]["kernel"]
  np.testing.assert_array_equal(kernel, network.params["Mixed_7c"]["branch3x3_2a"]["conv"]["kernel"])
  assert kernel.shape == (1, 3, 384, 384)


def test_wrong_weights_are_all_named(weights, tmp_path):
  wrong = dict(weights)
  del wrong["Mixed_5b.branch1x1.bn.running_var"]
  wrong["fc.weight"] = torch.zeros(1000, 2048)
  wrong["AuxLogits.fc.weight"] = torch.zeros(2)
  torch.save(wrong, tmp_path / "wrong.pth")
  with pytest.raises(ValueError) as error:
    features.load("inception", tmp_path / "wrong.pth")
  message = str(error.value)
  assert "\n" not in message
  assert "1 missing: Mixed_5b.branch1x1.bn.running_var" in message
  assert "1 left over: AuxLogits.fc.weight" in message
  assert "1 of another shape: fc.weight [1000, 2048] (for fc/kernel [2048, 1008])" in message


def test_unreadable_weights(tmp_path):
  with pytest.raises(CheckpointError, match="there is no file '.*none.pth'; give the path of pt_inception-2015-12-05"):
    features.load("inception", tmp_path / "none.pth")
  for name in ("text.pth", "text.safetensors"):
    (tmp_path / name).write_text("not weights")
    with pytest.raises(CheckpointError, match="is not a readable checkpoint"):
      features.load("inception", tmp_path / name)
  torch.save([1, 2], tmp_path / "list.pth")
  with pytest.raises(CheckpointError, match="holds no state dict"):
    features.load("inception", tmp_path / "list.pth")

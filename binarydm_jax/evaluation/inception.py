"""InceptionV3 as the FID papers use it: TensorFlow's graph of 2015-12-05, with 1,008 classes, in plain Flax.

It differs from the InceptionV3 of the usual libraries: average pools leave the padding out of the mean, the last block
takes a maximum instead (`Mixed_7c`), and images are resized as TensorFlow 1 did it. Names of modules are those of the
PyTorch port, so that its weights are read by name (`inception_weights`).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

SIDE = 299
DIM, NUM_CLASSES = 2048, 1008
# sFID (Nash et al. 2021, arXiv:2103.03841, as in ADM's suite) takes 7 channels of the layer that TensorFlow's graph
# calls mixed_6/conv: the 1x1 branch, after batch norm and ReLU, of the block that PyTorch calls Mixed_6d.
SPATIAL_CHANNELS = 7
SPATIAL_DIM = 17 * 17 * SPATIAL_CHANNELS


def resize_like_tf1(images, side=SIDE):
  """images [n, h, w, c] float32 -> [n, side, side, c]: TensorFlow 1's bilinear resize without aligned corners.

  Output pixel i is read at i h / side, with no shift by half a pixel, and a smaller image is not filtered first. So it
  is in the graph that ADM's suite runs, and in torch-fidelity; pytorch-fid resizes otherwise, and says so: its FID of
  images that are not 299 pixels wide differs in the second or third digit.
  """
  for axis in (2, 1):
    size = images.shape[axis]
    # In float32, as TensorFlow computes the places.
    place = np.arange(side, dtype=np.float32) * np.float32(size / side)
    low = place.astype(np.int32)
    shape = [1] * 4
    shape[axis] = side
    weight = jnp.asarray((place - low).reshape(shape))
    low_pixels = jnp.take(images, low, axis=axis)
    images = low_pixels + (jnp.take(images, np.minimum(low + 1, size - 1), axis=axis) - low_pixels) * weight
  return images


class Conv(nn.Module):
  """Convolution without bias, batch norm by stored statistics (epsilon 0.001), ReLU.

  kernel: (height, width). padding: zeros on each side, (vertical, horizontal).
  """

  features: int
  kernel: tuple = (1, 1)
  stride: int = 1
  padding: tuple = (0, 0)

  @nn.compact
  def __call__(self, x):
    """x [n, h, w, c] -> [n, h', w', features]."""
    padding = [(p, p) for p in self.padding]
    # Full float32 products: a TPU's default of bfloat16 would change the distances.
    x = nn.Conv(
      self.features, self.kernel, self.stride, padding, use_bias=False, precision="highest", name="conv"
    )(x)
    return nn.relu(Norm(name="bn")(x))


class Norm(nn.Module):
  """Batch norm whose statistics are parameters like any other: they are read, never trained."""

  @nn.compact
  def __call__(self, x):
    """x [n, h, w, c] -> (x - mean) scale / sqrt(var + 0.001) + bias."""
    shape = (x.shape[-1],)
    scale, var = (self.param(name, nn.initializers.ones, shape) for name in ("scale", "var"))
    bias, mean = (self.param(name, nn.initializers.zeros, shape) for name in ("bias", "mean"))
    return (x - mean) * (scale * jax.lax.rsqrt(var + 1e-3)) + bias


def same(features, kernel, name):
  """A Conv that keeps the size of the image."""
  return Conv(features, kernel, 1, (kernel[0] // 2, kernel[1] // 2), name=name)


def average_pool(x):
  """3x3 means, stride 1; padding does not count."""
  return nn.avg_pool(x, (3, 3), (1, 1), ((1, 1), (1, 1)), count_include_pad=False)


def max_pool(x):
  """3x3 maxima, stride 2, no padding."""
  return nn.max_pool(x, (3, 3), (2, 2))


class BlockA(nn.Module):
  """35x35: 1x1, 5x5, double 3x3, pool."""

  pool_features: int

  @nn.compact
  def __call__(self, x):
    """x [n, 35, 35, c] -> [n, 35, 35, 224 + pool_features]."""
    five = same(64, (5, 5), "branch5x5_2")(Conv(48, name="branch5x5_1")(x))
    three = same(96, (3, 3), "branch3x3dbl_2")(Conv(64, name="branch3x3dbl_1")(x))
    three = same(96, (3, 3), "branch3x3dbl_3")(three)
    pool = Conv(self.pool_features, name="branch_pool")(average_pool(x))
    return jnp.concatenate([Conv(64, name="branch1x1")(x), five, three, pool], axis=-1)


class BlockB(nn.Module):
  """35x35 to 17x17."""

  @nn.compact
  def __call__(self, x):
    """x [n, 35, 35, c] -> [n, 17, 17, 480 + c]."""
    three = same(96, (3, 3), "branch3x3dbl_2")(Conv(64, name="branch3x3dbl_1")(x))
    three = Conv(96, (3, 3), 2, name="branch3x3dbl_3")(three)
    return jnp.concatenate([Conv(384, (3, 3), 2, name="branch3x3")(x), three, max_pool(x)], axis=-1)


class BlockC(nn.Module):
  """17x17: 1x1, factorized 7x7, double factorized 7x7, pool."""

  inner: int

  @nn.compact
  def __call__(self, x):
    """x [n, 17, 17, c] -> ([n, 17, 17, 768], its 1x1 branch [n, 17, 17, 192])."""
    one = Conv(192, name="branch1x1")(x)
    seven = same(self.inner, (1, 7), "branch7x7_2")(Conv(self.inner, name="branch7x7_1")(x))
    seven = same(192, (7, 1), "branch7x7_3")(seven)
    double = same(self.inner, (7, 1), "branch7x7dbl_2")(Conv(self.inner, name="branch7x7dbl_1")(x))
    double = same(self.inner, (1, 7), "branch7x7dbl_3")(double)
    double = same(self.inner, (7, 1), "branch7x7dbl_4")(double)
    double = same(192, (1, 7), "branch7x7dbl_5")(double)
    pool = Conv(192, name="branch_pool")(average_pool(x))
    return jnp.concatenate([one, seven, double, pool], axis=-1), one


class BlockD(nn.Module):
  """17x17 to 8x8."""

  @nn.compact
  def __call__(self, x):
    """x [n, 17, 17, c] -> [n, 8, 8, 512 + c]."""
    three = Conv(320, (3, 3), 2, name="branch3x3_2")(Conv(192, name="branch3x3_1")(x))
    seven = same(192, (1, 7), "branch7x7x3_2")(Conv(192, name="branch7x7x3_1")(x))
    seven = same(192, (7, 1), "branch7x7x3_3")(seven)
    seven = Conv(192, (3, 3), 2, name="branch7x7x3_4")(seven)
    return jnp.concatenate([three, seven, max_pool(x)], axis=-1)


class BlockE(nn.Module):
  """8x8: 1x1, 3x3 split in two, double 3x3 split in two, pool. take_max: the pool takes maxima, as in the last one."""

  take_max: bool

  @nn.compact
  def __call__(self, x):
    """x [n, 8, 8, c] -> [n, 8, 8, 2048]."""

    def split(x, name):
      return [same(384, (1, 3), f"{name}a")(x), same(384, (3, 1), f"{name}b")(x)]

    three = split(Conv(384, name="branch3x3_1")(x), "branch3x3_2")
    double = same(384, (3, 3), "branch3x3dbl_2")(Conv(448, name="branch3x3dbl_1")(x))
    double = split(double, "branch3x3dbl_3")
    pooled = nn.max_pool(x, (3, 3), (1, 1), ((1, 1), (1, 1))) if self.take_max else average_pool(x)
    pool = Conv(192, name="branch_pool")(pooled)
    return jnp.concatenate([Conv(320, name="branch1x1")(x), *three, *double, pool], axis=-1)


class InceptionV3(nn.Module):
  """images uint8 -> what the metrics need."""

  @nn.compact
  def __call__(self, images):
    """images [n, h, w, 1 or 3] uint8, any size -> float32 (pooled, spatial, logits).

    pooled [n, 2048]: means of the last feature map. spatial [n, 2023]: 17 x 17 x 7, flattened in this order.
    logits [n, 1008]: without the bias of the last layer, as the Inception Score of TensorFlow's graph has it.
    """
    x = jnp.asarray(images, jnp.float32)
    x = jnp.repeat(x, 3, axis=-1) if x.shape[-1] == 1 else x
    x = (resize_like_tf1(x) - 128.0) / 128.0
    x = Conv(32, (3, 3), 2, name="Conv2d_1a_3x3")(x)
    x = Conv(32, (3, 3), name="Conv2d_2a_3x3")(x)
    x = max_pool(same(64, (3, 3), "Conv2d_2b_3x3")(x))
    x = Conv(192, (3, 3), name="Conv2d_4a_3x3")(Conv(80, name="Conv2d_3b_1x1")(x))
    x = max_pool(x)
    for name, pool_features in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
      x = BlockA(pool_features, name=name)(x)
    x = BlockB(name="Mixed_6a")(x)
    branches = {}
    for name, inner in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
      x, branches[name] = BlockC(inner, name=name)(x)
    x = BlockD(name="Mixed_7a")(x)
    x = BlockE(False, name="Mixed_7b")(x)
    x = BlockE(True, name="Mixed_7c")(x)
    pooled = x.mean(axis=(1, 2))
    logits = nn.Dense(NUM_CLASSES, use_bias=False, precision="highest", name="fc")(pooled)
    return pooled, branches["Mixed_6d"][..., :SPATIAL_CHANNELS].reshape(len(x), -1), logits

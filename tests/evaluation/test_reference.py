"""Reference statistics: measured in batches, kept in a file under their protocol; published files; broken files."""

import json
import zipfile

import numpy as np
import pytest

from binarydm_jax.data import open_source
from binarydm_jax.evaluation import adm_reference, features, reference
from binarydm_jax.evaluation.features import Outputs
from binarydm_jax.evaluation.metrics import frechet_distance, moments
from binarydm_jax.evaluation.reference import InvalidReference


class Means:
  """Takes any RGB images; features are the mean of each channel, spatial features the first row's red and green."""

  name, sha256, dim, spatial_dim = "inception", "ab" * 32, 3, 2

  def __init__(self):
    self.seen = []

  def outputs(self, images, batch_size):
    self.seen.append(len(images))
    x = images.astype(np.float32)
    return Outputs(x.mean(axis=(1, 2)), x[:, 0, :, :2].mean(axis=1), np.full((len(x), 4), 0.25, np.float32))


class Source:
  """Images that differ from each other; `name` as of a data source."""

  def __init__(self, count=50, side=4, seed=0, name="folder:x (train)"):
    self.images = np.random.default_rng(seed).integers(0, 256, (count, side, side, 3)).astype(np.uint8)
    self.name = name

  def __len__(self):
    return len(self.images)

  def __getitem__(self, i):
    return {"image": self.images[i], "label": np.int32(0)}


def same(a, b):
  assert a.protocol == b.protocol and a.halves == b.halves
  for x, y in ((a.moments, b.moments), (a.spatial, b.spatial)):
    assert (x is None) == (y is None)
    if x is not None:
      np.testing.assert_array_equal(x.mean, y.mean)
      np.testing.assert_array_equal(x.cov, y.cov)
      assert x.count == y.count
  assert (a.features is None) == (b.features is None)
  if a.features is not None:
    np.testing.assert_array_equal(a.features, b.features)


@pytest.fixture
def measured():
  return reference.compute(Means(), Source(), keep=10, batch_size=16)


def test_moments_of_all_features_of_some(measured):
  outputs = Means().outputs(Source().images, 50)
  for ours, theirs in ((measured.moments, outputs.features), (measured.spatial, outputs.spatial)):
    np.testing.assert_allclose(ours.mean, moments(theirs).mean, rtol=1e-13)
    np.testing.assert_allclose(ours.cov, moments(theirs).cov, rtol=1e-11)
  # Every fifth image: not the first ten, which may be of one class.
  np.testing.assert_array_equal(measured.features, outputs.features[::5])
  halves = frechet_distance(moments(outputs.features[::2]), moments(outputs.features[1::2]))
  assert measured.halves == pytest.approx(halves, rel=1e-9)
  assert {**measured.protocol, "images_sha256": 0} == dict(
    version=1, source="folder:x (train)", image_shape=[4, 4, 3], images_sha256=0, count=50, kept=10,
    network="inception", sha256="ab" * 32,
  )  # fmt: skip
  assert json.loads(json.dumps(measured.protocol)) == measured.protocol


@pytest.mark.parametrize("batch_size", [1, 7, 50, 64])
def test_batches_do_not_matter(measured, batch_size):
  network, seen = Means(), []
  again = reference.compute(network, Source(), keep=10, batch_size=batch_size, num_threads=3, progress=seen.append)
  np.testing.assert_allclose(again.moments.cov, measured.moments.cov, rtol=1e-11)
  np.testing.assert_array_equal(again.features, measured.features)
  assert again.halves == pytest.approx(measured.halves, rel=1e-9)
  assert max(network.seen) <= batch_size and sum(seen) == 50


def test_part_of_the_data_and_nothing_kept():
  """The part is spread over the source, which may be in the order of its classes."""
  part = reference.compute(Means(), Source(), count=20, keep=0, batch_size=8)
  rows = [i * 50 // 20 for i in range(20)]
  np.testing.assert_allclose(part.moments.mean, Means().outputs(Source().images[rows], 50).features.mean(0), rtol=1e-6)
  assert part.protocol["images_sha256"] != reference.protocol_of(Means(), Source(), count=21)["images_sha256"]
  assert part.features is None and part.moments.count == part.protocol["count"] == 20 and part.protocol["kept"] == 0
  assert reference.compute(Means(), Source(), count=500, keep=500).features.shape == (50, 3)
  assert reference.compute(Means(), Source(), count=5).halves is None


def test_too_few_images_are_said_before_work():
  network = Means()
  with pytest.raises(ValueError, match="n = 3 samples of d = 3"):
    reference.compute(network, Source(3))
  assert network.seen == []


def test_digits_with_the_shipped_network():
  source = open_source("digits", image_size=8, channels=1, split="test")
  measured = reference.compute(features.load("digits_classifier"), source, keep=100)
  assert measured.spatial is None and measured.features.shape == (100, 64)
  assert measured.protocol["source"] == "digits (test)" and 0 < measured.halves < 200


def test_file_round_trip(measured, tmp_path):
  path = tmp_path / "deep" / "reference.npz"
  reference.save(path, measured)
  same(reference.read(path, measured.protocol), measured)
  assert [entry.name for entry in path.parent.iterdir()] == ["reference.npz"]
  bare = reference.compute(Means(), Source(), count=5, keep=0)
  reference.save(path, bare)
  same(reference.read(path), bare)


def test_cache_measures_once(tmp_path):
  path, calls = tmp_path / "reference.npz", []

  def obtain(source, recompute=False):
    calls.append(source.name)
    network = Means()
    found = reference.cached(
      path, reference.protocol_of(network, source), lambda: reference.compute(network, source), recompute
    )
    return found, bool(network.seen)

  first, ran = obtain(Source())
  assert ran
  again, ran = obtain(Source())
  assert not ran
  same(first, again)
  # Other images under the same name, as after another way of resizing.
  with pytest.raises(InvalidReference, match="images_sha256 is '.*', wanted '.*'; remove it or give another path"):
    obtain(Source(seed=1))
  same(reference.read(path), first)
  replaced, ran = obtain(Source(seed=1), recompute=True)
  assert ran
  same(reference.read(path), replaced)
  path.write_bytes(path.read_bytes()[:1000])
  with pytest.raises(InvalidReference, match="not an npz file"):
    obtain(Source(seed=1))
  same(obtain(Source(seed=1), recompute=True)[0], replaced)


def test_other_protocols_name_their_fields(measured, tmp_path):
  reference.save(tmp_path / "r.npz", measured)
  for wanted, message in (
    ({"count": 7}, "measured otherwise: count is 50, wanted 7;"),
    ({"sha256": "cd", "kept": 3}, "kept is 10, wanted 3; sha256 is 'abab.*', wanted 'cd'"),
    ({"more": 1}, "more is None, wanted 1"),
  ):
    with pytest.raises(InvalidReference, match=message) as error:
      reference.read(tmp_path / "r.npz", measured.protocol | wanted)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "change, message",
  [
    ({"protocol": None}, "states no protocol"),
    ({"protocol": np.array("{")}, "states no protocol"),
    ({"protocol": np.array('{"version": 9}')}, "format version 9, expected 1"),
    ({"protocol": np.array('{"version": 1}')}, "incomplete protocol"),
    ({"mu": None}, "must hold both mu and sigma"),
    ({"mu": None, "sigma": None}, "lacks arrays"),
    ({"features": None}, "lacks arrays"),
    ({"features": np.zeros((10, 4), np.float32)}, r"features float32 \(10, 4\)"),
    ({"sigma": np.zeros((2, 2))}, r"mu \(3,\) and sigma \(2, 2\)"),
    ({"sigma_s": np.full((2, 2), np.nan)}, "mu_s .* must be finite"),
    ({"mu": np.array(["a", "b", "c"])}, "floating point"),
    ({"mu": np.array([{}, 1, 2])}, "not an npz file of plain arrays"),
  ],
)
def test_broken_files(measured, tmp_path, change, message):
  reference.save(tmp_path / "r.npz", measured)
  arrays = reference.load_arrays(tmp_path / "r.npz") | change
  np.savez(tmp_path / "r.npz", **{name: array for name, array in arrays.items() if array is not None})
  with pytest.raises(InvalidReference, match=message) as error:
    reference.read(tmp_path / "r.npz")
  assert "\n" not in str(error.value)


def test_not_a_reference(tmp_path):
  with pytest.raises(InvalidReference, match="there is no reference file"):
    reference.read(tmp_path / "none.npz")
  np.save(tmp_path / "array.npy", np.zeros(3))
  with pytest.raises(InvalidReference, match="not an npz file"):
    reference.read(tmp_path / "array.npy")
  header = np.lib.format.magic(1, 0)
  for name, content in {
    "huge": header + b"\x76\x00" + b"{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776,), }".ljust(117)
    + b"\n", "tokens": header + b"\x10\x00" + b"{'descr': ((((((\n",
  }.items():
    with zipfile.ZipFile(tmp_path / f"{name}.npz", "w") as archive:
      archive.writestr("mu.npy", content)
    with pytest.raises(InvalidReference, match="not an npz file of plain arrays") as error:
      reference.read(tmp_path / f"{name}.npz")
    assert "\n" not in str(error.value)


# --- published files --------------------------------------------------------------------------------------------------


def statistics(rng, dim, suffix):
  rows = rng.normal(size=(99, dim))
  return {f"mu{suffix}": rows.mean(axis=0).astype(np.float32), f"sigma{suffix}": np.cov(rows, rowvar=False)}


def published(path, *, pooled=True, spatial=True, images=None, compressed=False):
  rng = np.random.default_rng(0)
  arrays = (statistics(rng, 3, "") if pooled else {}) | (statistics(rng, 2, "_s") if spatial else {})
  arrays |= {} if images is None else {"arr_0": images}
  (np.savez_compressed if compressed else np.savez)(path, **arrays)
  return arrays


@pytest.mark.parametrize("compressed", [False, True])
def test_published_moments_and_images(tmp_path, compressed):
  """Moments are the file's own, features those of its images, read in batches."""
  path, images, network = tmp_path / "VIRTUAL_x.npz", Source(30).images, Means()
  arrays = published(path, images=images, compressed=compressed)
  found = adm_reference.compute(path, network, keep=10_000, batch_size=8)
  for ours, suffix in ((found.moments, ""), (found.spatial, "_s")):
    np.testing.assert_array_equal(ours.mean, arrays[f"mu{suffix}"])
    np.testing.assert_array_equal(ours.cov, arrays[f"sigma{suffix}"])
    assert ours.mean.dtype == np.float64 and ours.count is None
  np.testing.assert_array_equal(found.features, Means().outputs(images, 30).features)
  assert network.seen == [8, 8, 8, 6]
  assert found.protocol["image_shape"] == [4, 4, 3] and found.protocol["count"] is None and found.halves is None
  reference.save(tmp_path / "cache.npz", found)
  same(reference.read(tmp_path / "cache.npz", adm_reference.protocol_of(path, network)), found)


def test_published_moments_alone(tmp_path):
  published(tmp_path / "fid.npz", spatial=False)
  network = Means()
  found = adm_reference.compute(tmp_path / "fid.npz", network)
  assert found.spatial is None and found.features is None and network.seen == []
  assert found.protocol["image_shape"] is None and found.protocol["kept"] == 0


def test_published_images_alone(tmp_path):
  source = Source(30)
  published(tmp_path / "images.npz", pooled=False, spatial=False, images=source.images)
  found = adm_reference.compute(tmp_path / "images.npz", Means(), keep=5)
  expected = reference.compute(Means(), source, keep=5)
  np.testing.assert_allclose(found.moments.cov, expected.moments.cov, rtol=1e-11)
  np.testing.assert_array_equal(found.features, expected.features)
  assert found.moments.count == 30 and found.halves == pytest.approx(expected.halves)


@pytest.mark.parametrize(
  "arguments, message",
  [
    (dict(pooled=False, spatial=False), "holds neither mu and sigma nor images"),
    (dict(images=np.zeros((5, 4, 4, 3))), r"arr_0 is float64 \(5, 4, 4, 3\); it must hold images"),
    (dict(images=np.zeros((5, 4), np.uint8)), r"arr_0 is uint8 \(5, 4\)"),
    (dict(images=np.array([None])), r"arr_0 is object \(1,\)"),
  ],
)
def test_published_errors(tmp_path, arguments, message):
  published(tmp_path / "x.npz", **arguments)
  with pytest.raises(InvalidReference, match=message):
    adm_reference.compute(tmp_path / "x.npz", Means())


def test_published_files_are_looked_at_before_training(tmp_path):
  """`check` reads no image and no moments: another network, other sizes, and a file that holds neither."""
  published(tmp_path / "x.npz", images=np.zeros((5, 4, 4, 3), np.uint8))
  adm_reference.check(tmp_path / "x.npz", Means(), (4, 4, 3))
  with pytest.raises(InvalidReference, match="holds images of 4x4x3, and these are of 8x8x3"):
    adm_reference.check(tmp_path / "x.npz", Means(), (8, 8, 3))
  with pytest.raises(InvalidReference, match="belongs to InceptionV3"):
    adm_reference.check(tmp_path / "x.npz", features.load("digits_classifier"), (4, 4, 3))
  with zipfile.ZipFile(tmp_path / "y.npz", "w") as archive:
    archive.writestr("arr_0", b"")
  with pytest.raises(InvalidReference, match="holds neither mu and sigma nor images"):
    adm_reference.check(tmp_path / "y.npz", Means(), (4, 4, 3))


def test_published_files_belong_to_inception(tmp_path):
  published(tmp_path / "x.npz")
  with pytest.raises(InvalidReference, match="belongs to InceptionV3, but .* is 'digits_classifier'"):
    adm_reference.compute(tmp_path / "x.npz", features.load("digits_classifier"))
  network = Means()
  network.dim = 4
  with pytest.raises(InvalidReference, match="moments of 3 features, the network has 4"):
    adm_reference.compute(tmp_path / "x.npz", network)
  for name, content in (("none.npz", None), ("text.npz", b"text")):
    if content:
      (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidReference, match="there is no reference file|is not an npz file"):
      adm_reference.compute(tmp_path / name, Means())


@pytest.mark.parametrize("compressed", [False, True])
def test_broken_download(tmp_path, compressed):
  """Bytes changed in the images: found while they are read, said in one line."""
  path = tmp_path / "x.npz"
  published(path, images=Source(200, side=16).images, compressed=compressed)
  content = bytearray(path.read_bytes())
  middle = len(content) // 2
  content[middle : middle + 20] = bytes(20)
  path.write_bytes(content)
  with pytest.raises(InvalidReference, match="arr_0 is broken") as error:
    adm_reference.compute(path, Means(), batch_size=8)
  assert "\n" not in str(error.value)

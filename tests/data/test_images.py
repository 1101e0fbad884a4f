"""Folders of images: which files, in which order, with which labels, how they are decoded, and each error."""

import os

import numpy as np
import pytest
from PIL import Image

from binarydm_jax.data import batches, open_source, read_all


def _open(spec, split="train", image_size=4, channels=1, **arguments):
  return open_source(spec, image_size=image_size, channels=channels, split=split, **arguments)


def _fails(*parts, spec, **arguments):
  """Opening `spec` is a ValueError of one line that holds every one of `parts`."""
  with pytest.raises(ValueError) as caught:
    _open(spec, **arguments)
  message = str(caught.value)
  assert "\n" not in message
  for part in parts:
    assert part in message


def _save(path, value, size=(4, 4), mode="L"):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new(mode, size, value).save(path)


def test_folder_labels_are_the_first_level_in_sorted_order(tmp_path):
  for i, name in enumerate(["b/2.png", "a/deep/1.png", "b/1.jpg", "a/0.PNG"]):
    _save(tmp_path / name, 10 * i)
  (tmp_path / "a" / "notes.txt").write_text("no image")
  (tmp_path / "a" / "._0.png").write_text("no image either")
  source, test = (_open(f"folder:{tmp_path}", split, holdout=0.01) for split in ("train", "test"))
  assert source.num_classes == 2 and len(source) + len(test) == 4
  images, labels = (np.concatenate(parts) for parts in zip(read_all(source), read_all(test)))
  assert sorted(zip(images[:, 0, 0, 0].tolist(), labels.tolist())) == [(0, 1), (10, 0), (20, 1), (30, 0)]
  # Within a split the order is that of the paths: all of a before all of b.
  assert sorted(read_all(source)[1]) == list(read_all(source)[1])


@pytest.mark.parametrize("names", [["0.png", "a/1.png", "b/2.png"], ["a/0.png", "a/1.png"]])
def test_folder_without_telling_subfolders_has_no_labels(tmp_path, names):
  for name in names:
    _save(tmp_path / name, 0)
  source = _open(f"folder:{tmp_path}")
  assert source.num_classes == 0 and source[0]["label"] == 0


def test_folder_that_links_to_itself_ends(tmp_path):
  _save(tmp_path / "real" / "a.png", 0)
  _save(tmp_path / "real" / "b.png", 0)
  os.symlink(tmp_path / "real", tmp_path / "real" / "again")
  os.makedirs(tmp_path / "data")
  os.symlink(tmp_path / "real", tmp_path / "data" / "linked")
  assert sum(len(_open(f"folder:{tmp_path}/data", split)) for split in ("train", "test")) == 2


def test_images_are_cropped_to_the_centre_and_reduced(tmp_path):
  pixels = np.zeros((16, 48), np.uint8)
  pixels[:, 16:32] = 200
  for name in ("a.png", "b.png"):
    Image.fromarray(pixels).save(tmp_path / name)
  np.testing.assert_array_equal(_open(f"folder:{tmp_path}")[0]["image"][:, 1:-1], 200)
  np.testing.assert_array_equal(_open(f"folder:{tmp_path}", image_size=16)[0]["image"], 200)


@pytest.mark.parametrize("size", [(3, 7), (9, 5), (4, 4), (1, 1), (100, 63)])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size_becomes_the_stated_one(tmp_path, size, channels):
  for name in ("a.png", "b.png"):
    _save(tmp_path / name, 77, size)
  np.testing.assert_array_equal(
    _open(f"folder:{tmp_path}", image_size=5, channels=channels)[0]["image"], np.full((5, 5, channels), 77)
  )


def _palette():
  image = Image.new("P", (4, 4), 1)
  image.putpalette([0, 0, 0, 255, 0, 0])
  return image


@pytest.mark.parametrize(
  ("image", "expected"),
  [
    (Image.new("RGBA", (4, 4), (10, 20, 30, 255)), (10, 20, 30)),
    (Image.new("RGBA", (4, 4), (0, 0, 0, 0)), (255, 255, 255)),
    (Image.new("LA", (4, 4), (9, 255)), (9, 9, 9)),
    (Image.new("1", (4, 4), 1), (255, 255, 255)),
    (_palette(), (255, 0, 0)),
    (Image.fromarray(np.full((4, 4), 128 * 257, np.uint16)), (128, 128, 128)),
  ],
)
def test_modes_are_converted(tmp_path, image, expected):
  for name in ("a.png", "b.png"):
    image.save(tmp_path / name)
  np.testing.assert_array_equal(_open(f"folder:{tmp_path}", channels=3)[0]["image"], np.full((4, 4, 3), expected))
  assert _open(f"folder:{tmp_path}")[0]["image"].shape == (4, 4, 1)


def test_photographs_are_turned_upright(tmp_path):
  pixels = np.zeros((4, 4), np.uint8)
  pixels[0] = 255
  exif = Image.Exif()
  exif[0x0112] = 3  # Orientation: upside down.
  for name in ("a.png", "b.png"):
    Image.fromarray(pixels).save(tmp_path / name, exif=exif)
  np.testing.assert_array_equal(_open(f"folder:{tmp_path}")[0]["image"][..., 0], pixels[::-1])


def test_folder_errors(tmp_path):
  _fails("data.source", "no folder", "missing", spec=f"folder:{tmp_path}/missing")
  (tmp_path / "notes.txt").write_text("no image")
  _fails("data.source", str(tmp_path), "no images", spec=f"folder:{tmp_path}")
  _save(tmp_path / "a.png", 0)
  _fails("at least 2", spec=f"folder:{tmp_path}")


def _truncate(path, size=(64, 64)):
  noise = np.random.RandomState(0).randint(0, 256, (*size, 3), np.uint8)
  Image.fromarray(noise).save(path)
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_file_that_is_no_image_fails_when_opened(tmp_path):
  _save(tmp_path / "a.png", 0)
  (tmp_path / "b.png").write_text("no image")
  _fails("data.source", "b.png", "data.skip_unreadable=True", spec=f"folder:{tmp_path}")


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_truncated_image_is_named_when_read(tmp_path, ending):
  for name in "ab":
    _truncate(tmp_path / f"{name}.{ending}")
  source = _open(f"folder:{tmp_path}")
  with pytest.raises(ValueError, match=rf"[ab]\.{ending}.*data\.skip_unreadable=True"):
    source[0]
  with pytest.raises(ValueError, match=rf"[ab]\.{ending}.*data\.skip_unreadable=True"):
    next(batches(source, batch_size=1, seed=0))


def test_unreadable_images_are_replaced_and_move_nothing(tmp_path):
  for i in range(6):
    _save(tmp_path / f"{i}.png", 10 * i)
  spec = f"folder:{tmp_path}"
  whole = [read_all(_open(spec, split, skip_unreadable=True))[0][:, 0, 0, 0].tolist() for split in ("train", "test")]
  assert sorted(sum(whole, [])) == [0, 10, 20, 30, 40, 50]
  # One by its header, one by its pixels: neighbours in the training split, so the third takes the place of both.
  (tmp_path / f"{whole[0][1] // 10}.png").write_text("no image")
  _truncate(tmp_path / f"{whole[0][2] // 10}.png")
  left = [read_all(_open(spec, split, skip_unreadable=True))[0][:, 0, 0, 0].tolist() for split in ("train", "test")]
  assert left == [[whole[0][0], whole[0][3], whole[0][3], *whole[0][3:]], whole[1]]


def test_folder_of_unreadable_images_only(tmp_path):
  for name in ("a.png", "b.png"):
    (tmp_path / name).write_text("no image")
  with pytest.raises(ValueError, match=r"none of 1 examples.*[ab]\.png.*repair"):
    _open(f"folder:{tmp_path}", skip_unreadable=True)[0]

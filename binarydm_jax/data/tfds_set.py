"""Images of a TFDS set that was prepared as array_record; reading one takes no TensorFlow."""

import bisect
import itertools
from concurrent import futures

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from PIL import Image

from binarydm_jax.data import images as images_lib
from binarydm_jax.data.examples import Read
from binarydm_jax.data.images import DataError, Unreadable, one_line


def open_tfds(
  name: str, split: str, field: str, image_size: int, channels: int, data_dir: str | None
) -> tuple[int, int, Read]:
  """Number of examples, number of classes, and the function that reads an example.

  Args:
    name: of the set, as TFDS has it.
    split: of the set; `field` is the name of the config's field that it comes from.
    image_size, channels: of the images to be made.
    data_dir: where TFDS looks for prepared sets; None is its default.
  Raises:
    DataError: one line: no such set or split, not prepared, no images, or a file that is not whole. The function raises
      Unreadable, naming file and record.
  """
  import tensorflow_datasets as tfds  # pylint: disable=g-import-not-at-top  # Slow, and other sources do without.

  try:
    builder = tfds.builder(name, data_dir=data_dir)
  except Exception as error:  # Unknown names and unknown configs raise different kinds, with a list of thousands.
    raise DataError(
      f"data.source: TFDS cannot open {name!r} ({' '.join(str(error).split())[:160]}); check the name, "
      "or `pip install tensorflow` if that is what is missing"
    ) from error
  arguments = f"{name!r}, file_format='array_record'" + (f", data_dir={data_dir!r}" if data_dir else "")
  mend = (
    "prepare it once with `import tensorflow_datasets as tfds; "
    f"tfds.builder({arguments}).download_and_prepare()` (preparing, unlike reading, may need `pip install tensorflow`)"
  )
  if not builder.info.splits:
    raise DataError(f"data.source: the TFDS set {name!r} is not prepared in {str(builder.data_path)!r}; {mend}")
  features = builder.info.features
  if "image" not in features:
    raise DataError(
      f"data.source: the TFDS set {name!r} has no feature 'image' (it has {sorted(features)}); choose another"
    )
  # `dtype` would import TensorFlow; `np_dtype` does not.
  if features["image"].np_dtype != np.uint8 or len(features["image"].shape) != 3:
    raise DataError(
      f"data.source: the feature 'image' of the TFDS set {name!r} is {features['image']}; choose a set of uint8 images"
    )
  try:
    examples = builder.as_data_source(split=split)
  except NotImplementedError as error:
    raise DataError(f"data.source: the TFDS set {name!r} is prepared, but not as array_record; {mend}") from error
  except (KeyError, ValueError) as error:
    raise DataError(f"{field} is {split!r}, but the TFDS set {name!r} has {sorted(builder.info.splits)}") from error
  files = builder.info.splits[split].file_instructions
  _check_files(files, mend)
  starts = list(itertools.accumulate((file.take for file in files), initial=0))
  num_classes = getattr(features["label"], "num_classes", None) or 0 if "label" in features else 0

  def read(i: int) -> tuple[np.ndarray, int]:
    try:
      example = examples[i]
      pixels = np.asarray(example["image"])
      image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    except MemoryError:
      raise
    except Exception as error:  # Of array_record, of TFDS's features, or of the image's decoder.
      at = bisect.bisect_right(starts, i) - 1
      record = files[at].skip + i - starts[at]
      raise Unreadable(
        f"cannot read record {record} of {str(files[at].filename)!r} ({one_line(error)})",
        "prepare the TFDS set again",
      ) from error
    return images_lib.to_square(image, image_size, channels), example["label"] if num_classes else 0

  return len(examples), num_classes, read


def _check_files(files, mend: str) -> None:
  """Raises DataError for the first of the set's files that is not there or not whole."""

  def fault(file) -> str | None:
    try:
      reader = ArrayRecordReader(str(file.filename), "readahead_buffer_size:0,max_parallelism:0")
      # A file cut short lacks the index at its end: it may open all the same, but is not ok.
      found = reader.num_records() if reader.ok() else None
      reader.close()
    except RuntimeError as error:
      return one_line(error)
    if found is None:
      return "it is cut short or damaged"
    return None if found == file.examples_in_shard else f"{found} records where {file.examples_in_shard} belong"

  with futures.ThreadPoolExecutor() as pool:
    for file, reason in zip(files, pool.map(fault, files)):
      if reason:
        raise DataError(f"data.source: cannot read {str(file.filename)!r} ({reason}); remove its folder, then {mend}")

"""A small TFDS set that the tests prepare as array_record, without TensorFlow."""

import io

from PIL import Image


def prepare(data_dir, features=None, name="tiny_images"):
  """Writes a real TFDS set as array_record; images go in as PNG, since TFDS needs TensorFlow to encode an array."""
  import tensorflow_datasets as tfds

  def examples(split, count):
    for i in range(count):
      file = io.BytesIO()
      Image.new("RGB", (12, 10), (i, 100 if split == "test" else 0, 0)).save(file, "PNG")
      file.seek(0)
      yield i, features[1](i) if features else {"image": file, "label": i % 3}

  # Unregistered, so that TFDS finds the set by its files alone, as it does in another program.
  class Images(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      spec = {"image": tfds.features.Image(shape=(10, 12, 3)), "label": tfds.features.ClassLabel(num_classes=3)}
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features[0] if features else spec))

    def _split_generators(self, download_manager):
      return {"train": examples("train", 12), "test": examples("test", 5)}

    def _generate_examples(self):
      raise NotImplementedError

  Images.name = name
  Images(data_dir=data_dir, file_format="array_record").download_and_prepare()
  return str(data_dir)

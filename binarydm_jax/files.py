"""Files that are whole or not there, and known by their digests."""

import hashlib
import os
import pathlib


def write_atomically(path, data):
  """Writes bytes beside `path` and renames, so that a reader (or a killed run) never meets half a file."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  # Random: processes of several hosts may write it at once, and have the same number.
  temporary = path.with_name(f".{path.name}.tmp{os.urandom(6).hex()}")
  try:
    with open(temporary, "wb") as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())  # a machine that loses its power could else keep the name and not the bytes
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def sha256_of(path):
  """SHA-256 of a file's content."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()

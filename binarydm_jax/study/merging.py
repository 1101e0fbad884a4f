"""Studies of several machines as one: the results.json of each has all that the tables of their runs need."""

import json

from binarydm_jax.study.results import COSTS, PROTOCOL, QUALITY, SETTINGS, TEACHER
from binarydm_jax.study.rows import ROWS

# What must be equal in all of them.
COMMON = ("title", "protocol", "training_steps")
OTHERS = ("reference", "settings", "teachers", "hardware", "versions", "commands", "wall_seconds", "processes")
ORDER = {name: i for i, name in enumerate([TEACHER, *(row.name for row in ROWS)])}


def read(path):
  """results.json of a study -> (about, records).

  Args:
    path: Path.
  Raises:
    ValueError: it is none.
  """
  try:
    content = json.loads(path.read_text())
    about, records = content["about"], content["records"]
    for name in (*COMMON, *OTHERS):
      about[name]
    for record in records:
      ORDER[record["row"]]
      [record[name] for name in ("seed", "training_seconds", "workdir", *QUALITY, *COSTS, *PROTOCOL, *SETTINGS)]
  except OSError as error:
    raise ValueError(f"--add={path}: {error.strerror}; give results.json of other studies") from None
  except (KeyError, TypeError, ValueError):
    raise ValueError(f"--add={path} is no results.json of a study of this version; --table writes it again") from None
  return about, records


def merge(studies):
  """(about, records) of all studies together, row by row and seed by seed.

  Args:
    studies: {what errors call it: (about, records)}. A teacher that several have sampled by one seed counts once.
  Raises:
    ValueError: they differ in what must be equal: protocol, fields of their configs, the teacher of a seed, or what a
      run that two of them have was measured to be.
  """
  (first, (about, _)), *others = studies.items()
  # A file of before has neither fields nor images.
  about = {**about, **{part: dict(about.get(part, {})) for part in ("images", "fields", "settings", "teachers")}}
  for name, (other, _) in others:
    for key in COMMON:
      _check_equal(key, first, about[key], name, other[key])
    parts = dict(images="the {} images", fields="{}", settings="{}", teachers="the teacher of seed {}")
    for part, what in parts.items():
      for key, value in other.get(part, {}).items():
        _check_equal(what.format(key), first, about[part].setdefault(key, value), name, value)
    for key in ("hardware", "versions", "commands"):
      about[key] = list(dict.fromkeys([*about[key], *other[key]]))
    for key in ("wall_seconds", "processes"):
      about[key] += other[key]
  found = {}
  for name, (_, records) in studies.items():
    for record in records:
      key = record["row"], record["seed"]
      before, known = found.setdefault(key, (name, record))
      for quality in QUALITY if key[0] != TEACHER else ():
        _check_equal(f"{quality} of {key[0]} seed {key[1]}", before, known[quality], name, record[quality])
  records = [record for _, record in found.values()]
  return about, sorted(records, key=lambda record: (ORDER[record["row"]], record["seed"]))


def _check_equal(what, first, a, second, b):
  if a != b:
    raise ValueError(f"{first} and {second} differ in {what}: {a} and {b}")

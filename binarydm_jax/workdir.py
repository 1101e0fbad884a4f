"""The workdir's config: training fields are locked by the first run, the others may change."""

import hashlib
import json
from pathlib import Path

import jax
import numpy as np

from binarydm_jax.files import write_atomically

LOCKED = ("seed", "method", "data", "model", "first_stage", "diffusion", "quant", "distill", "teacher", "student")
# Where things are kept and how many are made at once changes nothing; what is in the files is locked by `lock_inputs`.
FREE = (
  "data.prefetch", "data.skip_unreadable", "data.threads", "data.workers", "first_stage.batch_size",
  "first_stage.cache", "first_stage.checkpoint", "teacher.checkpoint",
)  # fmt: skip
# The same of what a finished run measures: seeds aside, nothing of results.json depends on these.
SPEED_ONLY = (
  "sample.batch_size", "sample.num_images", "sample.model", "sample.backend", "evaluation.batch_size", "compute.remat",
  "compute.accumulate", "compute.deterministic", "export.stablehlo", "export.force",
)  # fmt: skip
PATHS = (
  "data.source", "data.data_dir", "evaluation.classifier", "evaluation.inception_weights", "evaluation.reference",
)  # fmt: skip
SEEDS = ("seed", "sample.seed")
INPUTS = "inputs.json"


def _plain(config):
  """A ConfigDict as what JSON gives back."""
  return json.loads(json.dumps(config.to_dict()))


def _differences(old, new, prefix=""):
  """(field, old value, new value) of those that differ; a field that the old run did not know yet is none."""
  for name in sorted(old):
    a, b = old.get(name), new.get(name)
    if isinstance(a, dict) and isinstance(b, dict):
      yield from _differences(a, b, f"{prefix}{name}.")
    elif a != b:
      yield f"{prefix}{name}", a, b


def read_config(workdir):
  """The dict in workdir/config.json.

  Raises:
    ValueError: there is none, or it is not JSON.
  """
  path = Path(workdir).expanduser() / "config.json"
  try:
    return json.loads(path.read_text())
  except OSError:
    raise ValueError(f"{workdir} is not the workdir of a run: it has no config.json") from None
  except json.JSONDecodeError:
    raise ValueError(f"{path} is not valid JSON: mend it, or remove it and give the fields of then") from None


def is_run(path):
  """Whether a path is the workdir of a run that has a teacher (else it is a published checkpoint).

  Raises:
    ValueError: of a run that took its teacher from elsewhere.
  """
  path = Path(path).expanduser()
  if not (path / "config.json").is_file():
    return False
  if (path / "teacher").is_dir():
    return True
  try:
    elsewhere = read_config(path)["teacher"]["checkpoint"]
  except (ValueError, LookupError, TypeError):  # another program's config.json
    return False
  how = f"its was {elsewhere!r}" if elsewhere else "run --mode=pretrain there"
  raise ValueError(f"teacher.checkpoint {str(path)!r} is a run without a teacher of its own; {how}")


def check_own_teacher(workdir):
  """Raises ValueError where a teacher would be trained for a run that has had one from `teacher.checkpoint`."""
  if read_inputs(workdir).get("teacher_given") and not (Path(workdir) / "teacher").is_dir():
    raise ValueError(
        f"{workdir} was begun with a teacher from teacher.checkpoint: give it again, or another --workdir"
    )


def digest(params):
  """SHA-256 of a tree of arrays, their paths included."""
  sha256 = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    sha256.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
  return sha256.hexdigest()


def read_inputs(workdir):
  """What `lock_inputs` has kept in a workdir, {} where nothing is."""
  try:
    return json.loads((Path(workdir).expanduser() / INPUTS).read_text())
  except FileNotFoundError:
    return {}
  except (OSError, json.JSONDecodeError):
    raise ValueError(f"{Path(workdir) / INPUTS} cannot be read; give another --workdir") from None


def lock_inputs(workdir, **values):
  """Keeps what a run found in its input files in workdir/inputs.json, or compares it with what is kept there.

  Raises:
    ValueError: the run was begun with something else.
  """
  kept = read_inputs(workdir)
  for name, value in values.items():
    if name in kept and kept[name] != value:
      raise ValueError(
          f"{workdir} was begun with another {name} ({kept[name]}, and now {value}): give another --workdir, or the"
          " files of then"
      )
  if not set(values) <= set(kept) and jax.process_index() == 0:
    path = Path(workdir) / INPUTS
    write_atomically(path, (json.dumps({**kept, **values}, indent=2) + "\n").encode())


def check_teacher(config):
  """Checks that there is to be a teacher, and `teacher.checkpoint`: a run must have the same network and diffusion.

  A published file is checked when it is read.

  Raises:
    ValueError: names the field that differs.
  """
  folder = config.teacher.checkpoint
  if not folder and not config.teacher.steps:
    raise ValueError("teacher.steps is 0 and no teacher.checkpoint is given; set one of them")
  if not folder or not is_run(folder):
    return
  old, new = read_config(folder), _plain(config)
  shared = ["data.channels", "data.image_size"] + ["data.source"] * config.model.class_conditional
  shared += _split_fields(old["data"], new["data"])
  for name, theirs, ours in _differences(old, new):
    section, _, field = name.partition(".")
    stage = section == "first_stage" and name not in FREE
    if section in ("model", "diffusion") or stage or name in shared:
      raise ValueError(f"teacher.checkpoint {folder!r} has {name}={theirs!r}, this run {ours!r}; set them alike")
  if config.sample.guidance != 1 and not old["teacher"].get("label_dropout"):
    raise ValueError(
        f"sample.guidance is {config.sample.guidance}, and teacher.checkpoint {folder!r} has teacher.label_dropout=0:"
        " its null class was never trained; give another teacher, or set the guidance to 1"
    )


def _split_fields(old, new):
  """Fields that decide which images are held out, and must be alike: else the teacher has trained on some of them."""
  source = new["source"]
  if old["source"] != source or source == "digits":
    return []
  if not source.startswith("tfds:"):
    return ["data.holdout"]
  both = bool(old["test_split"]) == bool(new["test_split"])
  return ["data.train_split"] + ([] if both and new["test_split"] else ["data.holdout", "data.test_split"])


def lock_images(config, workdir, *counts):
  """Keeps how many images there are to train on and to test: of another number others would be held out.

  Raises:
    ValueError: the run, or that of its teacher on the same source, was begun with another number.
  """
  teacher = config.teacher.checkpoint
  if teacher and is_run(teacher) and read_config(teacher)["data"]["source"] == config.data.source:
    theirs = read_inputs(teacher).get("num_images", list(counts))
    if theirs != list(counts):
      raise ValueError(
          f"teacher.checkpoint {teacher!r} was trained with num_images {theirs}, and now they are {list(counts)}: give"
          " the images of then, or another teacher"
      )
  lock_inputs(workdir, num_images=list(counts))


def lock_config(config, workdir, write=True):
  """Checks `config` against workdir/config.json and writes it there.

  Raises:
    ValueError: the workdir does not exist and cannot be made, or was begun with other training fields.
  """
  workdir, new = Path(workdir), _plain(config)
  path = workdir / "config.json"
  try:
    workdir.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise ValueError(f"--workdir={workdir} cannot be made: {error.strerror}; give another folder") from None
  if path.exists():
    for name, before, now in _differences(read_config(workdir), new):
      if name.split(".")[0] in LOCKED and name not in FREE:
        raise ValueError(
            f"{workdir} was begun with {name}={before!r}, and now it is {now!r}: give another --workdir, or set it back"
        )
  text = (json.dumps(new, indent=2) + "\n").encode()
  if write and jax.process_index() == 0 and not (path.exists() and path.read_bytes() == text):
    write_atomically(path, text)

"""The workdir's config: training fields are locked by the first run, the others may change."""

import json
from pathlib import Path

from binarydm_jax.files import write_atomically

LOCKED = ("seed", "method", "data", "model", "first_stage", "diffusion", "quant", "distill", "teacher", "student")
# Where latents are kept and how many are made at once changes nothing.
FREE = ("first_stage.cache", "first_stage.batch_size")


def _plain(config):
  """A ConfigDict as what JSON gives back."""
  return json.loads(json.dumps(config.to_dict()))


def _differences(old, new, prefix=""):
  for name in sorted({*old, *new}):
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
  path = Path(workdir) / "config.json"
  try:
    return json.loads(path.read_text())
  except OSError:
    raise ValueError(f"{workdir} is not the workdir of a run: it has no config.json") from None
  except json.JSONDecodeError:
    raise ValueError(f"{path} is not valid JSON; remove the workdir or give another") from None


def is_run(path):
  """Whether a path is the workdir of a run with a teacher (else it is a published checkpoint)."""
  return (Path(path) / "teacher").is_dir()


def check_teacher(config):
  """Checks that there is to be a teacher, and `teacher.checkpoint`: a run must have the same network and diffusion.

  What is in a published file is checked when it is read.

  Raises:
    ValueError: names the field that differs.
  """
  folder = config.teacher.checkpoint
  if not folder and not config.teacher.steps:
    raise ValueError("teacher.steps is 0 and no teacher.checkpoint is given; set one of them")
  if folder and not Path(folder).exists():
    raise ValueError(f"teacher.checkpoint {folder!r} does not exist: give the workdir of a run, or a published file")
  if not folder or not is_run(folder):
    return
  old, new = read_config(folder), _plain(config)
  shared = ["data.channels", "data.image_size"] + ["data.source"] * config.model.class_conditional
  for name, theirs, ours in _differences(old, new):
    section, _, field = name.partition(".")
    stage = section == "first_stage" and field not in ("cache", "batch_size")
    if section in ("model", "diffusion") or stage or name in shared:
      raise ValueError(f"teacher.checkpoint {folder!r} has {name}={theirs!r}, this run {ours!r}; set them alike")


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
  if write:
    write_atomically(path, (json.dumps(new, indent=2) + "\n").encode())

"""The workdir's config: training fields are locked by the first run, the others may change."""

import json
from pathlib import Path

from binarydm_jax.files import write_atomically

LOCKED = ("seed", "method", "data", "model", "diffusion", "quant", "distill", "teacher", "student")


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


def check_teacher(config):
  """Checks that `teacher.checkpoint`, if given, is a run of the same network, images and diffusion.

  Raises:
    ValueError: names the field that differs.
  """
  if not config.teacher.checkpoint:
    return
  folder = config.teacher.checkpoint
  if not (Path(folder) / "teacher").is_dir():
    raise ValueError(f"teacher.checkpoint {folder!r} has no folder 'teacher'; give the workdir of a pretrained run")
  old, new = read_config(folder), _plain(config)
  shared = ["data.channels", "data.image_size"] + ["data.source"] * config.model.class_conditional
  for name, theirs, ours in _differences(old, new):
    if name.split(".")[0] in ("model", "diffusion") or name in shared:
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
      if name.split(".")[0] in LOCKED:
        raise ValueError(
            f"{workdir} was begun with {name}={before!r}, and now it is {now!r}: give another --workdir, or set it back"
        )
  if write:
    write_atomically(path, (json.dumps(new, indent=2) + "\n").encode())

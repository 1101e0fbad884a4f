"""From a config, rows and seeds to runs: each a config of its own, a workdir, and the command that makes it."""

import dataclasses
import json
import shlex
from pathlib import Path

from ml_collections import ConfigDict

from binarydm_jax.evaluate import config_digest, is_of_first_images
from binarydm_jax.study.rows import Row
from binarydm_jax.workdir import FREE, LOCKED, SPEED_ONLY, read_config
from configs import base

# Sections of the config that the results depend on.
OF_TEACHER = ("seed", "data", "model", "first_stage", "diffusion", "teacher")
MEASURED = (*LOCKED, "sample", "evaluation", "compute", "export")


@dataclasses.dataclass(frozen=True)
class Run:
  """One process of binarydm_jax.main.

  row: None for a teacher. seed: of training and, for students, of sampling. flags: {config field: value} that the
  command sets.
  """

  row: Row | None
  seed: int
  config: ConfigDict
  workdir: Path
  config_file: str
  flags: dict

  @property
  def name(self):
    return f"{self.row.name if self.row else 'teacher'} seed {self.seed}"

  @property
  def log(self):
    return self.workdir / "log.txt"

  @property
  def command(self):
    """The arguments after `python`."""
    fields = [f"--config.{name}={value}" for name, value in self.flags.items()]
    mode = "all" if self.row else "pretrain"
    return ["-m", "binarydm_jax.main", f"--config={self.config_file}", f"--workdir={self.workdir}", f"--mode={mode}",
            *fields]  # fmt: skip

  def shell_command(self):
    """As one would type it."""
    return shlex.join(["python", *self.command])


def overruled(students, config, overrides):
  """A line for each of `overrides` ({field: value} of the command line) that rows set otherwise, which win."""
  for name in overrides:
    value = flat_fields(config)[name]
    rows = {run.row.name: None for run in students if flat_fields(run.config)[name] != value}
    if rows and name != "teacher.checkpoint":
      yield f"--config.{name}={value} is not for {', '.join(rows)}, which set it themselves"


def row_workdir(folder, row_name, seed):
  return Path(folder) / row_name / f"seed_{seed}"


def teacher_workdir(folder, seed=None):
  """Of the one teacher, or, with a seed, of that seed's."""
  return Path(folder) / ("teacher" if seed is None else f"teacher_{seed}")


def make_runs(config_file, config, overrides, folder, rows, seeds, teacher_each=False):
  """(teachers, students): lists of Run in the order in which they are to be run, seed by seed.

  Of rows that are the same network and training by this config only the first is run: where EBB fades in all rows, one
  that says so is EBB. The rows' fields win over `overrides`. A student samples by its own seed, so that the spread over
  seeds is of training and sampling, and the teacher, sampled beside each student, has a spread over samplings.

  Args:
    config_file: path after --config.
    config: the ConfigDict of the file with `overrides`.
    overrides: {field: value}, those of the command line.
    folder: of the study.
    rows: Rows.
    seeds: of the students.
    teacher_each: a teacher for each seed, trained with it, instead of one for all.
  Raises:
    ValueError: an override that the seeds set, or teacher_each with a teacher.checkpoint.
  """
  for name in ("seed", "sample.seed"):
    if name in overrides:
      raise ValueError(f"--config.{name} is given: the runs of a study have the seeds of --seeds")
  given = config.teacher.checkpoint
  if given and teacher_each:
    raise ValueError("--teachers=each trains teachers, and teacher.checkpoint is given: leave one of them out")

  def run(row, seed, workdir, fields):
    changed = config.copy_and_resolve_references()
    changed.update_from_flattened_dict(fields)
    return Run(row, seed, changed, workdir, config_file, {**overrides, **fields})

  teachers = []
  if teacher_each:
    teachers = [run(None, seed, teacher_workdir(folder, seed), {"seed": seed}) for seed in seeds]
  elif not given:
    teachers = [run(None, config.seed, teacher_workdir(folder), {"seed": config.seed})]
  students = []
  for seed in seeds:
    checkpoint = given or str(teacher_workdir(folder, seed if teacher_each else None))
    different = {}
    for row in rows:
      fields = {**row.overrides, "seed": seed, "sample.seed": seed, "teacher.checkpoint": checkpoint}
      planned = run(row, seed, row_workdir(folder, row.name, seed), fields)
      different.setdefault(planned.config.to_json(), planned)
    students += different.values()
  return teachers, students


def read_results(workdir):
  """results.json of a run whose evaluation is finished and belongs to its config.json, else None."""
  try:
    results = json.loads((workdir / "results.json").read_text())
    config = read_config(workdir)
  except (OSError, ValueError):
    return None
  finished = (results.get("packed") or {}).get("step") in (None, config["student"]["steps"])
  return results if finished and results.get("config_sha256") == config_digest(ConfigDict(config)) else None


def finished_results(run):
  """results.json of a run that is finished by its present config, else None.

  A field that the run did not know yet must have the default of configs/base.py.
  """
  results = read_results(run.workdir)
  if results is None:
    return None
  if is_of_first_images(results.get("heldout"), run.config.evaluation.heldout_images):
    return None
  known, wanted = read_fields(run.workdir), flat_fields(run.config)
  changed = [name for name in known | wanted if known.get(name) != wanted.get(name)]
  free = (*FREE, *SPEED_ONLY)
  return None if any(name.split(".")[0] in MEASURED and name not in free for name in changed) else results


def read_fields(workdir):
  """{field: value} of a run's config; one that the run did not know yet has the default of configs/base.py."""
  return flat_fields(base.get_config()) | _flat(read_config(workdir))


def flat_fields(config):
  """{field: value} of a config, as JSON gives it back."""
  return _flat(config.to_dict())


def _flat(fields, prefix=""):
  """{"a": {"b": (1, 2)}} -> {"a.b": [1, 2]}: by paths, and as JSON gives it back."""
  found = {}
  for name, value in fields.items():
    if isinstance(value, dict):
      found |= _flat(value, f"{prefix}{name}.")
    else:
      found[prefix + name] = json.loads(json.dumps(value))
  return found


def check_teacher_folder(run):
  """Raises ValueError where the teacher that is there was trained by another config than the run's."""
  if not (run.workdir / "config.json").exists():
    return
  known, wanted = read_fields(run.workdir), flat_fields(run.config)
  for name in sorted(known | wanted):
    if name.split(".")[0] in OF_TEACHER and name not in FREE and known.get(name) != wanted.get(name):
      raise ValueError(
          f"{run.workdir} holds a teacher with {name}={known.get(name)!r}, and now it is {wanted.get(name)!r}: give"
          " another --folder, or set it back"
      )


def teacher_is_finished(run):
  """Whether a teacher's last checkpoint is there; orbax gives it its name when it is whole."""
  return (run.workdir / "teacher" / str(run.config.teacher.steps)).is_dir()

"""Methods by equal budgets: python -m binarydm_jax.study --config=configs/digits_study.py --folder=runs/study

Trains one teacher, then a student of each row and seed from it, and writes table.md, results.csv and results.json into
the folder. Run again it continues; a run that is finished costs nothing. --rows takes core, complete, or names of rows
and groups with commas (binarydm_jax/study/rows.py), of which those that the config makes equal are run once; fields
such as --config.student.steps=2000 are set for all runs. Seeds or rows of several machines meet in one table by
--table --add=FILE, the results.json of the others.

Each run is a process of binarydm_jax.main with a log beside its results. One that fails does not stop the others. Exit
codes: 0 done; 1 a run failed, or an error, said in one line; 75 stopped by SIGTERM or SIGINT, run it again.
"""

import os
import shlex
import sys
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from binarydm_jax import preemption
from binarydm_jax.command_line import CONFIG, parse_flags

_FOLDER = flags.DEFINE_string("folder", None, "Of the study: a folder for each run, and the tables.")
_ROWS = flags.DEFINE_string("rows", "core", "core, complete, or names of rows and groups, with commas.")
_SEEDS = flags.DEFINE_list("seeds", ["1", "2", "3"], "Seeds of the students.")
_TEACHERS = flags.DEFINE_enum("teachers", "one", ("one", "each"), "One teacher for all seeds, or one for each.")
_JOBS = flags.DEFINE_integer("jobs", 1, "Runs at a time, each on its share of the CPUs.", lower_bound=1)
_TABLE = flags.DEFINE_bool("table", False, "Only write the tables from the runs that are finished.")
_ADD = flags.DEFINE_list("add", [], "results.json of other studies, whose runs the tables have as well; with commas.")


def parse_seeds(texts):
  """["1", "2"] -> (1, 2). ValueError for what is not a seed, or is one twice."""
  if not texts or not all(text.isdigit() for text in texts) or len(set(map(int, texts))) < len(texts):
    raise ValueError(f"--seeds={','.join(texts)}: give different whole numbers from 0 up, with commas")
  return tuple(map(int, texts))


def main(argv):
  if len(argv) > 1:
    sys.exit(f"error: unknown argument {argv[1]!r}; options begin with --")
  preemption.install()
  # The runs have the device to themselves: this process only reads configs and results.
  environment = dict(os.environ)
  os.environ["JAX_PLATFORMS"] = "cpu"
  from binarydm_jax.study import driver, tables

  try:
    if not _TABLE.value:
      file = config_flags.get_config_filename(flags.FLAGS["config"])
      overrides = config_flags.get_override_values(flags.FLAGS["config"])
      code = driver.run_study(
          file, CONFIG.value, overrides, Path(_FOLDER.value), _ROWS.value, parse_seeds(_SEEDS.value),
          teacher_each=_TEACHERS.value == "each", jobs=_JOBS.value, added=_ADD.value, environment=environment,
          command=shlex.join(["python", "-m", "binarydm_jax.study", *sys.argv[1:]]),
      )  # fmt: skip
      if code:
        sys.exit(code)
      return
    _, path = tables.write(_FOLDER.value, _ADD.value)
    print(path.read_text(), end="")
  except (ValueError, OSError) as error:
    sys.exit(f"error: {error}")
  except KeyboardInterrupt:
    sys.exit(preemption.EXIT_CODE)


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "folder"])
  app.run(main, flags_parser=parse_flags)

"""Command line: python -m binarydm_jax.main --config=configs/digits.py --workdir=runs/digits --mode=all

Modes: all (teacher if none is given, binarize, export, evaluate, report), pretrain, encode (latents of the training
images to disk), binarize, sample, evaluate, export, info. Run again in the same workdir, each continues where it
stopped. `--mode=sample` alone draws from the model that comes with the package. Several processes: see
binarydm_jax/distributed.py. Exit codes: 0 done; 1 an error, said in one line (BINARYDM_TRACEBACK=1 shows where it comes
from); 75 stopped by SIGTERM, SIGINT or SIGHUP with all saved, run it again.
"""

import contextlib
import os
import sys
import traceback
from pathlib import Path

from absl import app, flags

from binarydm_jax import distributed, preemption
from binarydm_jax.command_line import CONFIG, PROJECT, parse_flags, set_up_jax
from binarydm_jax.errors import RunError

MODES = ("all", "pretrain", "encode", "binarize", "sample", "evaluate", "export", "info")

# Without a config and a workdir, --mode=sample draws from the shipped model, which is of these images.
SHIPPED_CONFIG, SHIPPED_WORKDIR = PROJECT / "configs" / "digits.py", "runs/shipped"

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, logs, samples, report.")
_MODE = flags.DEFINE_enum("mode", "all", MODES, "What to do.")


def run(config, workdir, mode):
  """Checks everything, then dispatches; raises ValueError, OSError or RunError with one line for the user."""
  from binarydm_jax import run_lock

  if mode == "info":
    _run(config, workdir, mode)
    return
  with run_lock.hold(workdir):
    _run(config, workdir, mode)


def _run(config, workdir, mode):
  from binarydm_jax import encoding, modes
  from binarydm_jax.training.problem import build
  from binarydm_jax.training.validation import check_config
  from binarydm_jax.workdir import check_teacher, lock_config, lock_images

  if mode == "sample":
    # A packed file needs no data and no lock; a trained network needs both.
    check_config(config)

    def make_problem():
      check_teacher(config)
      lock_config(config, workdir, write=False)
      return build(config, with_data=False, trains=())

    modes.sample(config, workdir, make_problem)
    return
  trains = {"all": ("teacher", "student"), "pretrain": ("teacher",), "binarize": ("student",)}
  problem = build(config, with_data=mode not in ("info", "export"), trains=trains.get(mode, ()))
  if mode != "info":
    check_teacher(config)
  # A file that was exported or encoded anew changes nothing of what results.json was measured by.
  begun = (Path(workdir) / "config.json").exists()
  lock_config(config, workdir, write=mode != "info" and not (begun and mode in ("export", "encode")))
  if problem.train_data is not None and mode != "info":
    lock_images(config, workdir, len(problem.train_data), len(problem.test_data))
  action = {
    "all": modes.run_all,
    "pretrain": modes.pretrain,
    "encode": encoding.encode,
    "binarize": modes.binarize,
    "evaluate": modes.run_evaluate,
    "export": modes.export,
    "info": modes.info,
  }[mode]
  action(problem, workdir)


def main(argv):
  if len(argv) > 1:
    sys.exit(f"error: unknown argument {argv[1]!r}; options begin with --")
  preemption.install()
  several = False
  try:
    set_up_jax(CONFIG.value.compute.deterministic)
    several = distributed.initialize()
    if several:
      preemption.share()
    else:
      import jax

      if jax.process_count() > 1:  # a TPU pod that its environment does not show
        raise ValueError("--distributed=auto did not see that there are several processes: give --distributed=on")
    run(CONFIG.value, _WORKDIR.value, _MODE.value)
  except preemption.Preempted:
    with contextlib.suppress(OSError):  # the terminal may be gone
      print(f"{_WORKDIR.value}: stopped by a signal, all is saved; the same command goes on", file=sys.stderr)
    sys.exit(preemption.EXIT_CODE)
  except (ValueError, OSError, RunError) as error:
    if os.environ.get("BINARYDM_TRACEBACK"):
      traceback.print_exc()
    _fail(f"error: {error}", several)
  except Exception:
    _fail(traceback.format_exc(), several)


def with_shipped_model(argv):
  """The arguments, with those that mean the shipped model if a sample is wanted and nothing says of what."""
  names = {argument.lstrip("-").split("=")[0] for argument in argv[1:]}
  if "--mode=sample" not in argv or names & {"config", "workdir", "config.sample.model"} or not SHIPPED_CONFIG.exists():
    return argv
  shipped = [f"--config={SHIPPED_CONFIG}", f"--workdir={SHIPPED_WORKDIR}", "--config.sample.model=shipped"]
  return [argv[0], *shipped, *argv[1:]]


def _fail(words, several):
  try:
    print(words, file=sys.stderr, flush=True)
  finally:  # nobody may be there to read it
    if several:
      # An ordinary exit would wait for processes that wait for this one.
      os._exit(1)
  sys.exit(1)


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "workdir"])
  sys.argv = with_shipped_model(sys.argv)
  app.run(main, flags_parser=parse_flags)

"""Several processes, one run: who they are, from flags, a TPU pod or Slurm."""

import os
import sys
import threading

from absl import flags

_DISTRIBUTED = flags.DEFINE_enum(
  "distributed", "auto", ("auto", "on", "off"),
  "Several processes: auto (if --coordinator is given, on TPU pods, in Slurm steps of several tasks), on, off.",
)
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0; with the next two.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Of the run.", lower_bound=1)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Of this process, from 0.", lower_bound=0)
_TIMEOUT = flags.DEFINE_integer("distributed_timeout", 300, "Seconds to wait for the others.", lower_bound=1)


def is_cluster(environment):
  """Whether an environment (a dict) is that of one process of several: a TPU pod slice or a Slurm step.

  A notebook or a batch script inside a Slurm allocation is one task and no cluster.
  """
  tpu_hosts = [name for name in environment.get("TPU_WORKER_HOSTNAMES", "").split(",") if name]
  tpu_pod = len(tpu_hosts) > 1 or "," in environment.get("TPU_PROCESS_ADDRESSES", "")
  slurm_tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
  return tpu_pod or "MEGASCALE_COORDINATOR_ADDRESS" in environment or int(slurm_tasks or 1) > 1


def initialize():
  """Joins the other processes, if there are any; before any other use of jax.

  Returns:
    Whether there are others to be asked: jax.distributed is in use.
  Raises:
    ValueError: the flags do not belong together, or the others did not come.
  """
  given = dict(
      coordinator_address=_COORDINATOR.value, num_processes=_NUM_PROCESSES.value, process_id=_PROCESS_ID.value
  )
  missing = [name for name, value in given.items() if value is None]
  if _DISTRIBUTED.value == "off" or (_DISTRIBUTED.value == "auto" and len(missing) == 3 and not is_cluster(os.environ)):
    if len(missing) < 3:
      raise ValueError("--distributed=off, and --coordinator, --num_processes or --process_id is given: leave them out")
    return False
  if 0 < len(missing) < 3:
    flag = missing[0].removesuffix("_address")
    raise ValueError(f"--{flag} is missing: --coordinator, --num_processes and --process_id are given together")
  if not missing and given["process_id"] >= given["num_processes"]:
    raise ValueError(f"--process_id {given['process_id']} must be below --num_processes {given['num_processes']}")
  import jax

  given = {name: value for name, value in given.items() if value is not None}
  apart = "the processes did not come together ({}): check --coordinator, and that all of them were started"
  seconds = _TIMEOUT.value

  def give_up():
    print("error: " + apart.format(f"--distributed_timeout {seconds} seconds"), file=sys.stderr, flush=True)
    os._exit(1)

  # jax would end the process too, by an abort and a page of traces.
  watch = threading.Timer(seconds, give_up)
  watch.daemon = True
  watch.start()
  try:
    jax.distributed.initialize(**given, initialization_timeout=seconds + 60)
  except (RuntimeError, ValueError) as error:
    raise ValueError(apart.format(" ".join(str(error).split())[:200])) from error
  finally:
    watch.cancel()
  return True

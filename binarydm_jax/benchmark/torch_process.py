"""PyTorch in a process of its own: its memory is its own, and its threads rest while ours work."""

import contextlib
import importlib.util
import multiprocessing
import os
import time

from binarydm_jax.benchmark.common import peak_bytes


def missing():
  """Whether PyTorch is not installed."""
  return importlib.util.find_spec("torch") is None


def _serve(pipe, told, memory_format):
  # Threads that wait without spinning: on a machine that others use, too, several times faster.
  os.environ.setdefault("OMP_WAIT_POLICY", "passive")
  import torch

  from binarydm_jax.benchmark.torch_reference import use_all_cores
  from binarydm_jax.benchmark.torch_train import TorchStep

  torch.manual_seed(0)
  use_all_cores()
  step = TorchStep(told, memory_format)
  del told
  while pipe.recv():
    start, cpu = time.perf_counter(), time.process_time()
    step()
    pipe.send((time.perf_counter() - start, time.process_time() - cpu))
  pipe.send(dict(torch=torch.__version__, threads=torch.get_num_threads(), peak_bytes=peak_bytes()))


@contextlib.contextmanager
def torch_process(told, memory_format):
  """A process that trains by PyTorch; the value is a pair of functions, step and finish.

  step() -> (seconds, seconds of all cores) of one step; finish() -> version, threads and peak memory of the process.

  Args:
    told, memory_format: as `TorchStep` takes them.
  """
  context = multiprocessing.get_context("spawn")
  ours, its = context.Pipe()
  process = context.Process(target=_serve, args=(its, told, memory_format), daemon=True)
  process.start()
  its.close()

  def ask(again):
    ours.send(again)
    try:
      return ours.recv()
    except EOFError:
      raise RuntimeError(f"the PyTorch process ended (exit code {process.exitcode}); see its message above") from None

  try:
    yield (lambda: ask(True)), (lambda: ask(False))
  finally:
    ours.close()
    process.join(10)
    process.kill()

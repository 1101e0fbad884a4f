"""One step of quantization-aware training, beside the same step written in PyTorch: teacher, student, gradients, AdamW.

Both sides in one run, by turns, PyTorch in both of its memory formats; `ratio` is our median over that of its faster
one. `cpu_seconds` counts all cores: on a machine that others use, too, it says more than the clock.
"""

import contextlib
import statistics
import time

from binarydm_jax.benchmark import torch_process
from binarydm_jax.benchmark.common import peak_bytes, random_params, residual_bytes, timed
from binarydm_jax.benchmark.torch_problem import describe, refusal


class OurStep:
  """The compiled training step of a problem on random weights and images; a call runs it.

  Attributes:
    state, frozen: as `stages.initial_student` gives them; calls change the state.
    batch: of random images.
    row: what was measured while it was made.
  """

  def __init__(self, problem):
    import numpy as np

    from binarydm_jax.training import sharding, stages

    mesh = sharding.config_mesh(problem.config.mesh)
    batch_size = problem.config.student.batch_size
    rng = np.random.default_rng(0)
    classes = max(problem.teacher.num_classes, 1)
    self.batch = sharding.put_batch(
        {"image": rng.standard_normal((batch_size, *problem.input_shape), np.float32),
         "label": rng.integers(0, classes, batch_size).astype(np.int32)}, mesh,
    )  # fmt: skip
    params = sharding.put_replicated(random_params(problem.teacher, problem.input_shape), mesh)
    start = time.perf_counter()
    self.state, self.frozen = stages.initial_student(problem, params, [self.batch], mesh)
    prepared = time.perf_counter() - start
    inputs = problem.teacher.abstract_inputs(problem.input_shape, batch_size)
    kept = residual_bytes(problem.student, self.state.variables, *(x for x in inputs if x is not None))
    start = time.perf_counter()
    self._step = stages.student_train_step(problem, self.state, self.frozen)
    self._step = self._step.lower(self.state, self.frozen, self.batch).compile()
    self.row = dict(
        batch_size=batch_size, prepare_seconds=prepared, compile_seconds=time.perf_counter() - start,
        residual_bytes=kept,
    )  # fmt: skip
    memory = self._step.memory_analysis()
    if memory is not None:
      # The donated state comes back in its own memory.
      self.row.update(held_bytes=memory.argument_size_in_bytes, temporary_bytes=memory.temp_size_in_bytes)

  def __call__(self):
    self.state, metrics = self._step(self.state, self.frozen, self.batch)
    return metrics

  def timed(self):
    """(seconds, seconds of all cores) of one step."""
    cpu = time.process_time()
    return timed(self), time.process_time() - cpu


def why_alone(problem):
  """Why our step is not compared with PyTorch's, or ""."""
  import jax

  if torch_process.missing():
    return "PyTorch is not installed (requirements-dev.txt has it)"
  if jax.default_backend() != "cpu" or jax.device_count() > 1:
    return "our side does not run on one CPU device"
  return refusal(problem)


def run(problem, repeats):
  """A row for our step, one for PyTorch's in each memory format, and one for the ratio.

  PyTorch is left out, with a line that says why, where it is not installed, on other devices than CPUs, and for
  networks that its side does not have; there is then the first row alone.
  """

  ours = OurStep(problem)
  reason = why_alone(problem)
  if reason:
    print(f"no comparison with PyTorch: {reason}", flush=True)
  formats = () if reason else ("contiguous", "channels_last")
  with contextlib.ExitStack() as stack:
    steps, finish = {"jax": ours.timed}, {}
    if formats:
      told = describe(problem, ours.state.variables, ours.frozen)
      for name in formats:
        steps[name], finish[name] = stack.enter_context(torch_process.torch_process(told, name))
      del told
    first = {name: step() for name, step in steps.items()}
    times = {name: [] for name in steps}
    for _ in range(repeats):
      for name, step in steps.items():
        times[name].append(step())
    rows = {name: dict(
        first_seconds=first[name][0],
        seconds=statistics.median(wall for wall, _ in times[name]),
        cpu_seconds=statistics.median(cpu for _, cpu in times[name]),
    ) for name in steps}  # fmt: skip
    for name in formats:
      rows[name] = dict(by="torch", memory_format=name, **rows[name], **finish[name]())
  rows["jax"] = dict(
      by="jax", **ours.row, **rows["jax"], finite=bool(ours.state.ok), peak_bytes=peak_bytes(),
  )  # fmt: skip
  if formats:
    faster = min(formats, key=lambda name: rows[name]["seconds"])
    rows["ratio"] = dict(by="jax / torch", memory_format=faster, **{
        name: rows["jax"][key] / rows[faster][key]
        for name, key in (("ratio", "seconds"), ("cpu_ratio", "cpu_seconds"), ("peak_ratio", "peak_bytes"))
    })  # fmt: skip
  return list(rows.values())

"""Time and memory: python -m binarydm_jax.benchmark {forward,train,deploy} [--config=configs/lsun_bedrooms_ldm4.py]

  forward   one prediction of the full-precision network
  train     one step of quantization-aware training: teacher, student, gradients, AdamW, EMA; and the same in PyTorch
  deploy    the packed model against float32: bytes, layers, the whole network

Random weights and inputs; no data, no checkpoint. Prints lines and appends them as JSON to --output; `deploy` also
draws them into a .png beside it. The config is configs/benchmark_32.py unless another is given; fields are set as for
binarydm_jax.main, such as --config.student.batch_size=1 --config.compute.dtype=bfloat16.

Of memory it prints: what the forward pass keeps for the gradient (residual_bytes, before any compiler), what the step
is given (held_bytes: teacher, weights, optimizer, averages) and takes beside it (temporary_bytes, by the compiler's
account), and the peak of the whole process.
"""

import importlib
import json
import sys
from pathlib import Path

from absl import app, flags

from binarydm_jax.benchmark.common import readable
from binarydm_jax.command_line import CONFIG, parse_flags, set_up_jax

# Each is a module of this package with a function run(problem, repeats) -> rows, dicts that are printed.
MODES = ("forward", "train", "deploy")

_REPEATS = flags.DEFINE_integer("repeats", 5, "Runs after the first; their median counts.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", "", "File that gets lines of JSON.")


def main(argv):
  if len(argv) != 2 or argv[1] not in MODES:
    sys.exit(f"error: say what to measure: {' or '.join(MODES)}")
  mode = importlib.import_module(f"binarydm_jax.benchmark.{argv[1]}")
  set_up_jax()
  import jax

  from binarydm_jax.training.problem import build

  config = CONFIG.value
  try:
    problem = build(config, with_data=False)
  except (ValueError, OSError) as error:
    sys.exit(f"error: {error}")
  header = dict(
      what=argv[1], method=config.method, bits=f"{config.quant.act_bits}", dtype=config.compute.dtype,
      remat=config.compute.remat, devices=f"{jax.device_count()} x {jax.devices()[0].device_kind}",
  )  # fmt: skip
  rows = []
  try:
    for row in mode.run(problem, _REPEATS.value):
      rows.append(row)
      row = {**header, **row}
      print(", ".join(f"{name} {readable(name, value)}" for name, value in row.items()), flush=True)
      if _OUTPUT.value:
        Path(_OUTPUT.value).parent.mkdir(parents=True, exist_ok=True)
        with open(_OUTPUT.value, "a") as file:
          file.write(json.dumps(row) + "\n")
  except (ValueError, OSError) as error:
    sys.exit(f"error: {error}")
  if _OUTPUT.value and hasattr(mode, "plot"):
    mode.plot(rows, Path(_OUTPUT.value).with_suffix(".png"))


if __name__ == "__main__":
  if not any(argument.startswith(("--config=", "-config=")) for argument in sys.argv):
    sys.argv.insert(1, "--config=configs/benchmark_32.py")  # before the fields that change it
  app.run(main, flags_parser=parse_flags)

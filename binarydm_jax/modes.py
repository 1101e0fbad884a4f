"""What each --mode does. Every one works on a Problem (a checked config) and a workdir, and can be run again."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp

from binarydm_jax import evaluate, summary
from binarydm_jax.deploy import cost as cost_lib
from binarydm_jax.deploy import load, packed, stablehlo
from binarydm_jax.deploy.description import REMAINDERS
from binarydm_jax.deploy.unfinished import unfinished
from binarydm_jax.files import sha256_of, write_atomically
from binarydm_jax.formats import format_bytes, format_ops
from binarydm_jax.mesh import wait_for_all
from binarydm_jax.networks import packed_network, stream_samples, teacher_variables, trained_network
from binarydm_jax.quant import LayerRule, deployed_table
from binarydm_jax.training import feed, stages
from binarydm_jax.training.validation import load_features
from binarydm_jax.workdir import check_own_teacher

PACKED = "model.safetensors"
SHIPPED = Path(__file__).parent / "shipped" / "digits.safetensors"  # digits.md beside it is its card


def _say(*words):
  if jax.process_index() == 0:
    print(*words, flush=True)


def _write(path, data):
  """Bytes or text, by a temporary name; by the first process only."""
  if jax.process_index() == 0:
    write_atomically(path, data.encode() if isinstance(data, str) else data)


# --- training ---------------------------------------------------------------------------------------------------------


def pretrain(problem, workdir):
  """Trains the teacher; only reads it where teacher.checkpoint gives one."""
  if problem.config.teacher.checkpoint:
    teacher_variables(problem, workdir)
    return
  check_own_teacher(workdir)
  stages.pretrain(problem, workdir)


def binarize(problem, workdir):
  """Trains the student from the finished teacher."""
  stages.binarize(problem, workdir, lambda: teacher_variables(problem, workdir)["params"])


# --- cost and export --------------------------------------------------------------------------------------------------


def _abstract_params(problem):
  return jax.eval_shape(lambda *x: problem.teacher.init(jax.random.key(0), *x), *problem.inputs())["params"]


def student_cost(problem, table=None):
  """Cost of the student with a deployed rule table (None: that of the finished student), as it is exported."""
  table = deployed_table(problem.table) if table is None else table
  remainder_bytes = REMAINDERS[problem.config.export.remainder].itemsize
  return cost_lib.model_cost(problem.layers, table, _abstract_params(problem), remainder_bytes)


def costs(problem, table=None):
  """(cost of the teacher, cost of the student with a deployed rule table or, without one, of the finished student)."""
  floats = {layer.path: LayerRule() for layer in problem.layers}
  return cost_lib.model_cost(problem.layers, floats, _abstract_params(problem)), student_cost(problem, table)


def info(problem, workdir):
  """Prints and writes info.json: size, operations and the table of layers, from abstract shapes."""
  student = student_cost(problem)
  _say(f"{'path':34} {'kernel':>18} {'resolution':>10} {'rule':>12} {'bits W/A':>9} {'bytes':>10} {'MACs':>12}")
  for row in student.layers:
    shape = "x".join(map(str, row["kernel_shape"])) or "-"
    bits = f"{row['weight_bits'] or '-'}/{row['act_bits']}"
    more = " ".join(row[name] for name in ("activation", "response") if row[name] not in ("lsq", "none"))
    _say(
        f"{row['path']:34} {shape:>18} {row['resolution']:10.3g} {row['rule']:>12} {bits:>9}"
        f" {row['packed_bytes']:10,} {row['macs']:12,} {more}".rstrip()
    )
  _say(
      f"parameters {student.params:,}; float32 {format_bytes(student.fp32_bytes)}; packed"
      f" {format_bytes(student.packed_bytes)} ({student.fp32_bytes / student.packed_bytes:.1f}x smaller)\n"
      f"binarized weights {student.binarized:,}, {student.two_bases:,} of them with two bases;"
      f" {student.true_weight_bits:.3f} bits a weight\n"
      f"multiply-accumulates {format_ops(student.macs)} + {format_ops(student.attention_macs)} in attention; operations"
      f" {format_ops(student.ops)} ({student.macs / student.ops:.1f}x fewer)"
  )
  _write(Path(workdir) / "info.json", json.dumps(student.as_dict(), indent=2) + "\n")


def export(problem, workdir):
  """Writes the packed file of the student and checks its size against `cost`.

  Returns:
    (path -> LayerRule as it was packed, steps of training that the student has had).
  Raises:
    TrainingError: training is not finished, and `export.force` is not set.
  """
  fields, steps = problem.config.export, problem.config.student.steps
  step, state = stages.newest_state(problem, "student", workdir, least=1 if fields.force else steps)
  variables = stages.student_variables(problem, state)
  first_stage = feed.get_first_stage(problem, workdir)
  gates = problem.gates_fn(jnp.int32(step)) if problem.gates_fn else None
  table, variables, waiting = unfinished(
      problem.table, variables, gates, problem.teacher.block_names, problem.layers
  )
  if jax.process_index() == 0:
    _export(problem, workdir, step, table, variables, waiting, first_stage)
  wait_for_all("packed file")
  return table, step


def _export(problem, workdir, step, table, variables, waiting, first_stage):
  fields, steps = problem.config.export, problem.config.student.steps
  path = Path(workdir) / PACKED
  before = sha256_of(path) if path.exists() else None
  payload, header = packed.export(
      path,
      variables,
      problem.teacher,
      table,
      problem.layers,
      {name: problem.config.diffusion[name] for name in
       ("schedule", "num_timesteps", "beta_start", "beta_end", "target")},
      problem.input_shape,
      first_stage=first_stage.describe() if first_stage else None,
      remainder=fields.remainder,
      method=problem.config.method,
  )
  counted = student_cost(problem, table).packed_bytes
  if payload != counted:
    raise RuntimeError(f"{path} holds {payload} bytes of payload, and cost.py counts {counted}")
  _say(f"{path}: {payload:,} bytes of weights and {header:,} of description")
  if step < steps:
    blocks = f", {len(waiting)} of its {len(problem.teacher.block_names)} blocks not binarized yet" if waiting else ""
    _say(f"of an unfinished student, step {step} of {steps}{blocks}: export.force")
  program = path.with_suffix(".stablehlo")
  if sha256_of(path) != before:
    program.unlink(missing_ok=True)  # it was of the file before
  if fields.stablehlo:
    options = problem.config.sample
    size = stablehlo.write_step(
        load(path, "xla"), program, clip=options.clip, guidance=options.guidance,
        dynamic_threshold=options.dynamic_threshold,
    )
    _say(f"{program}: {size:,} bytes, one step of DDIM")


# --- sampling ---------------------------------------------------------------------------------------------------------


def sample(config, workdir, make_problem):
  """Draws sample.num_images images into samples/<name>.npz (arr_0, uint8 NHWC) and samples/<name>.png.

  Broken off and run again, it goes on with the batch where it stopped.

  Args:
    config: ConfigDict.
    workdir: folder.
    make_problem: () -> Problem, called only for "teacher" and "student": a packed file needs neither data nor training.
  """
  which = config.sample.model or str(Path(workdir) / PACKED)
  if which == "shipped":
    which = str(SHIPPED)
  trained = which in ("teacher", "student")
  network = trained_network(make_problem(), workdir, which) if trained else packed_network(
      which, config, workdir, config.sample.backend
  )
  # Not the names of the evaluation's samples, which stay.
  name = f"trained_{network.name}" if trained else network.name
  images, speed = stream_samples(
      network, workdir, name, config.sample, config.sample.num_images, config.first_stage.batch_size
  )
  _say(f"{Path(workdir) / 'samples' / name}.png and .npz: {len(images)} images, {speed:.3g} a second")


# --- evaluation and report --------------------------------------------------------------------------------------------


def _print_results(results, workdir):
  _say("\n" + summary.format_table(results))
  _say(f"\nsamples: {Path(workdir) / 'samples'}\nreport:  {Path(workdir) / 'report.html'}")


def run_evaluate(problem, workdir):
  """Writes the packed file, measures it beside the teacher, and prints the table."""
  table, step = export(problem, workdir)
  both = costs(problem, table)
  _print_results(evaluate.evaluate(problem, workdir, Path(workdir) / PACKED, both, table, step), workdir)


def _finished_results(config, workdir):
  """results.json, if it belongs to this config and everything that stands beside it is there; else None."""
  try:
    results = json.loads((workdir / "results.json").read_text())
  except (OSError, json.JSONDecodeError):
    return None
  complete = all((workdir / name).exists() for name in (PACKED, "report.html", "samples/comparison.png"))
  if not complete or results.get("config_sha256") != evaluate.config_digest(config):
    return None
  # Of a finished student, and of this very file: --mode=export may have written another since.
  file = results["packed"]
  same = file.get("sha256") in (None, sha256_of(workdir / PACKED))
  first = evaluate.is_of_first_images(results.get("heldout"), config.evaluation.heldout_images)
  if not same or first or file.get("step") not in (None, config.student.steps):
    return None
  network = load_features(config.evaluation)  # the file may be another one by now
  same_features = results["models"][0].get("feature_sha256") == (network.sha256 if network else None)
  diagnosed = not config.log.diagnostics or results.get("block_distance", True) is not None
  return results if same_features and diagnosed else None


def run_all(problem, workdir):
  """Teacher, student, packed file, evaluation, report: whatever of it is not done yet; prints the table."""
  results = _finished_results(problem.config, Path(workdir))
  if results:
    _say(f"{workdir} is finished; this is its report")
    _print_results(results, workdir)
    return
  if not problem.config.teacher.checkpoint:  # what is given is read when it is needed
    pretrain(problem, workdir)
  binarize(problem, workdir)
  run_evaluate(problem, workdir)

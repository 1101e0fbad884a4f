"""What each --mode does. Every one works on a Problem (a checked config) and a workdir, and can be run again."""

import hashlib
import json
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from binarydm_jax import plots, report
from binarydm_jax.data import read_all
from binarydm_jax.deploy import cost as cost_lib
from binarydm_jax.deploy import packed
from binarydm_jax.evaluation import features, metrics
from binarydm_jax.evaluation.heldout import heldout_loss
from binarydm_jax.evaluation.sampling import generate, make_sampler, to_uint8
from binarydm_jax.training import loop
from binarydm_jax.training.problem import model_inputs
from binarydm_jax.workdir import read_config

PACKED = "model.safetensors"


def _say(*words):
  if jax.process_index() == 0:
    print(*words, flush=True)


def _write(path, data):
  """Bytes or text, by a temporary name; by the first process only."""
  if jax.process_index() == 0:
    plots.write_atomically(Path(path), data.encode() if isinstance(data, str) else data)


# --- training ---------------------------------------------------------------------------------------------------------


def teacher_variables(problem, workdir):
  """{"params"} of the finished teacher: this workdir's, or that of config.teacher.checkpoint."""
  external = problem.config.teacher.checkpoint
  if not external:
    return loop.restore_ema(problem, "teacher", workdir)
  steps = read_config(external)["teacher"]["steps"]
  return loop.restore_ema(problem, "teacher", external, steps)


def pretrain(problem, workdir):
  """Trains the teacher (nothing to do if teacher.checkpoint gives one)."""
  if problem.config.teacher.checkpoint:
    teacher_variables(problem, workdir)
    return
  loop.pretrain(problem, workdir)


def binarize(problem, workdir):
  """Trains the student from the finished teacher."""
  loop.binarize(problem, workdir, teacher_variables(problem, workdir)["params"])


# --- cost and export --------------------------------------------------------------------------------------------------


def costs(problem):
  """(cost of the teacher, cost of the finished student)."""
  inputs = model_inputs(problem.image_shape, problem.config.model.class_conditional)
  params = jax.eval_shape(lambda *x: problem.teacher.init(jax.random.key(0), *x), *inputs)["params"]
  floats = {layer.path: problem.table[layer.path].__class__() for layer in problem.layers}
  table = cost_lib.deployed_table(problem.table)
  return cost_lib.model_cost(problem.layers, floats, params), cost_lib.model_cost(problem.layers, table, params)


def info(problem, workdir):
  """Prints and writes info.json: size, operations and the table of layers, from abstract shapes."""
  _, student = costs(problem)
  _say(f"{'path':34} {'kernel':>18} {'resolution':>10} {'rule':>12} {'bits W/A':>9} {'bytes':>10} {'MACs':>12}")
  for row in student.layers:
    shape = "x".join(map(str, row["kernel_shape"])) or "-"
    bits = f"{row['weight_bits'] or '-'}/{row['act_bits']}"
    _say(
        f"{row['path']:34} {shape:>18} {row['resolution']:10.3g} {row['rule']:>12} {bits:>9}"
        f" {row['packed_bytes']:10,} {row['macs']:12,}"
    )
  _say(
      f"parameters {student.params:,}; float32 {student.fp32_bytes / 2**20:.2f} MiB; packed"
      f" {student.packed_bytes / 2**20:.2f} MiB ({student.fp32_bytes / student.packed_bytes:.1f}x smaller)\n"
      f"binarized weights {student.binarized:,}, {student.two_bases:,} of them with two bases;"
      f" {student.true_weight_bits:.3f} bits a weight\n"
      f"multiply-accumulates {student.macs / 1e9:.3f} G + {student.attention_macs / 1e9:.3f} G in attention; operations"
      f" {student.ops / 1e9:.3f} G ({student.macs / student.ops:.1f}x fewer)"
  )
  _write(Path(workdir) / "info.json", json.dumps(student.as_dict(), indent=2) + "\n")


def export(problem, workdir):
  """Writes the packed file of the finished student's averaged weights and checks its size against `cost`."""
  variables = loop.restore_ema(problem, "student", workdir)
  if jax.process_index():
    return
  diffusion = {name: problem.config.diffusion[name] for name in
               ("schedule", "num_timesteps", "beta_start", "beta_end", "target")}
  path = Path(workdir) / PACKED
  payload, header = packed.export(
      path,
      variables,
      problem.teacher,
      cost_lib.deployed_table(problem.table),
      problem.layers,
      diffusion,
      problem.image_shape,
      method=problem.config.method,
  )
  counted = costs(problem)[1].packed_bytes
  if payload != counted:
    raise RuntimeError(f"{path} holds {payload} bytes of payload, and cost.py counts {counted}")
  _say(f"{path}: {payload:,} bytes of weights and {header:,} of description")


# --- sampling ---------------------------------------------------------------------------------------------------------


def _network(problem, workdir, name):
  """(model, variables, gates) of "teacher" or "student"."""
  if name == "teacher":
    return problem.teacher, teacher_variables(problem, workdir), None
  return problem.student, loop.restore_ema(problem, "student", workdir), problem.final_gates()


def _sampler(fields, model, schedule, target, image_shape):
  return make_sampler(
      model, schedule, target, image_shape, fields.sampler, fields.steps, fields.eta, fields.clip, fields.spacing
  )


def _generate(fields, name, model, variables, gates, schedule, target, image_shape, count):
  """(float images [count, h, w, c], images a second without the compilation)."""
  sampler = _sampler(fields, model, schedule, target, image_shape)
  compiled_for = min(fields.batch_size, count)
  with tqdm(total=count, desc=f"samples of {name}", unit="img", disable=jax.process_index() != 0) as bar:
    generate(sampler, variables, compiled_for, fields.seed, compiled_for, model.num_classes, gates)  # compiles
    start = time.perf_counter()
    images = generate(
        sampler, variables, count, fields.seed, fields.batch_size, model.num_classes, gates, progress=bar.update
    )
    return images, count / (time.perf_counter() - start)


def sample_packed(config, workdir, path):
  """Images of a packed file as float [n, h, w, c]; needs neither data nor training."""
  model = packed.load(path)
  return _generate(
      config.sample, "packed", model.model, model.variables, None, model.schedule, model.target, model.image_shape,
      config.sample.num_images,
  )[0]


def sample(config, workdir, make_problem):
  """Draws sample.num_images images into samples/<name>.npz (arr_0, uint8 NHWC) and samples/<name>.png.

  Args:
    config: ConfigDict.
    workdir: folder.
    make_problem: () -> Problem, called only for "teacher" and "student".
  """
  which = config.sample.model or str(Path(workdir) / PACKED)
  if which in ("teacher", "student"):
    problem = make_problem()
    model, variables, gates = _network(problem, workdir, which)
    images, _ = _generate(
        config.sample, which, model, variables, gates, problem.schedule, config.diffusion.target, problem.image_shape,
        config.sample.num_images,
    )
    name = which
  else:
    images, name = sample_packed(config, workdir, which), "packed"
  save_samples(workdir, name, np.asarray(to_uint8(images)))
  _say(f"{Path(workdir) / 'samples' / name}.png and .npz: {len(images)} images")


def save_samples(workdir, name, images, most=64):
  """samples/<name>.npz of all and samples/<name>.png of the first `most`."""
  if jax.process_index():
    return
  folder = Path(workdir) / "samples"
  folder.mkdir(parents=True, exist_ok=True)
  temporary = folder / f"{name}.tmp.npz"
  np.savez(temporary, arr_0=images)
  os.replace(temporary, folder / f"{name}.npz")
  plots.save_png(folder / f"{name}.png", plots.image_grid(images[:most]))


# --- evaluation and report --------------------------------------------------------------------------------------------


def _network_moments(problem):
  """(feature network, moments of the real training images, their two halves' distance); Nones without a network."""
  if problem.config.evaluation.feature_network == "none":
    return None, None, None
  network = features.load(problem.config.evaluation.feature_network)
  real = network(read_all(problem.train_data)[0])
  halves = metrics.frechet_distance(metrics.moments(real[::2]), metrics.moments(real[1::2]))
  return network, metrics.moments(real), halves


def evaluate(problem, workdir):
  """Samples from teacher and student, measures both, and writes results.json and report.html; returns the results."""
  config = problem.config
  network, reference, halves = _network_moments(problem)
  test_images, test_labels = read_all(problem.test_data)
  bits = {"teacher": "32/32", "student": f"{cost_lib.table_bits(problem.table)}/{config.quant.act_bits}"}
  labels = {"teacher": "full precision teacher", "student": f"1-bit student ({config.method})"}
  if not any(rule.bases for rule in problem.table.values()):
    labels["student"] = f"quantized student ({problem.method.weights})"
  rows, drawn = [], {}
  for name, cost in zip(("teacher", "student"), costs(problem)):
    model, variables, gates = _network(problem, workdir, name)
    images, speed = _generate(
        config.sample, name, model, variables, gates, problem.schedule, config.diffusion.target, problem.image_shape,
        config.evaluation.num_samples,
    )
    drawn[name] = images
    integers = np.asarray(to_uint8(images))
    save_samples(workdir, name, integers)
    loss = heldout_loss(
        model, variables, gates, test_images, test_labels, problem.schedule, config.diffusion.target,
        config.evaluation.timesteps_per_image, config.evaluation.batch_size,
    )
    distance = metrics.frechet_distance(metrics.moments(network(integers)), reference) if network else None
    rows.append(
        dict(
            name=name,
            label=labels[name],
            bits=bits[name],
            true_weight_bits=cost.true_weight_bits,
            fid=distance,
            feature_network=network.name if network else None,
            feature_sha256=network.sha256 if network else None,
            heldout_loss=loss,
            num_samples=config.evaluation.num_samples,
            sampler=config.sample.sampler,
            steps=config.sample.steps,
            eta=config.sample.eta,
            clip=config.sample.clip,
            spacing=config.sample.spacing,
            size_bytes=cost.packed_bytes,
            fp32_bytes=cost.fp32_bytes,
            macs=cost.macs,
            ops=cost.ops,
            images_per_second=speed,
            seed=config.sample.seed,
        )
    )
  results = dict(
      title=f"BinaryDM on {config.data.source}",
      method=config.method,
      models=rows,
      reference=None if halves is None else dict(fid=halves, what="one half of the real images against the other"),
      environment=_environment(),
      config_sha256=_evaluated(config),
  )
  path = Path(workdir) / PACKED
  if path.exists():
    count = min(len(drawn["student"]), 64)
    model = packed.load(path)
    images, _ = _generate(
        config.sample, "packed", model.model, model.variables, None, model.schedule, model.target, model.image_shape,
        count,
    )
    results["packed"] = dict(
        file=PACKED,
        payload_bytes=packed.file_sizes(path)[0],
        header_bytes=packed.file_sizes(path)[1],
        max_difference_from_student=float(np.abs(images - drawn["student"][:count]).max()),
    )
    save_samples(workdir, "packed", np.asarray(to_uint8(images)))
  if jax.process_index() == 0:
    report.write_results(Path(workdir) / "results.json", results)
    write_report(problem, workdir)
  return results


def write_report(problem, workdir):
  """report.html and the grid samples/comparison.png, from what evaluation left in the workdir."""
  workdir = Path(workdir)
  results = json.loads((workdir / "results.json").read_text())
  grids = {"real": read_all(problem.test_data, 64)[0]}
  for name in ("teacher", "student", "packed"):
    path = workdir / "samples" / f"{name}.npz"
    if path.exists() and (name != "packed" or "packed" in results):
      grids[name] = np.load(path, allow_pickle=False)["arr_0"][:64]
  diagnostics = {"The packed file": results["packed"]} if "packed" in results else None
  curves = plots.read_curves(workdir / "metrics.jsonl")
  report.write_report(workdir / "report.html", results, curves, grids, diagnostics)


def _environment():
  devices = jax.devices()
  return dict(
      binarydm_jax=version("binarydm_jax") if _installed() else "source tree",
      jax=jax.__version__,
      python=platform.python_version(),
      devices=f"{len(devices)} x {devices[0].device_kind}, {os.cpu_count()} CPU cores",
      time=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
      command="python -m binarydm_jax.main " + " ".join(sys.argv[1:]),
  )


def _installed():
  try:
    return bool(version("binarydm_jax"))
  except ModuleNotFoundError:
    return False


def _print_results(results, workdir):
  _say("\n" + report.format_table(results))
  _say(f"\nsamples: {Path(workdir) / 'samples'}\nreport:  {Path(workdir) / 'report.html'}")


def run_evaluate(problem, workdir):
  """`evaluate`, and prints the table."""
  _print_results(evaluate(problem, workdir), workdir)


def _evaluated(config):
  """Digest of what a results.json depends on."""
  fields = {name: value for name, value in config.to_dict().items() if name not in ("log", "checkpoint")}
  return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def run_all(problem, workdir):
  """Teacher, student, packed file, evaluation, report: whatever of it is not done yet; prints the table."""
  pretrain(problem, workdir)
  binarize(problem, workdir)
  export(problem, workdir)
  path = Path(workdir) / "results.json"
  if path.exists() and json.loads(path.read_text()).get("config_sha256") == _evaluated(problem.config):
    _say(f"{workdir} is finished; this is its report")
    _print_results(json.loads(path.read_text()), workdir)
  else:
    run_evaluate(problem, workdir)

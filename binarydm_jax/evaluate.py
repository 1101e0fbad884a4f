"""A finished run measured: samples of teacher and packed student, all metrics, results.json and the report."""

import hashlib
import json
import platform
import shlex
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from binarydm_jax import __version__, diagnostic_plots, plots, preemption, report, summary
from binarydm_jax.command_line import PROJECT, cpu_count
from binarydm_jax.data import read_all
from binarydm_jax.deploy import packed
from binarydm_jax.deploy.cost import nominal_bits
from binarydm_jax.evaluation import adm_reference
from binarydm_jax.evaluation import reference as reference_lib
from binarydm_jax.evaluation.block_distance import MOST_IMAGES, block_distance, middle_timesteps
from binarydm_jax.evaluation.heldout import bucket_starts, heldout_loss
from binarydm_jax.evaluation.sample_files import open_samples
from binarydm_jax.evaluation.samples import evaluate_samples
from binarydm_jax.evaluation.sampling import sampling_options
from binarydm_jax.files import sha256_of
from binarydm_jax.networks import packed_network, stream_samples, trained_network
from binarydm_jax.training import feed
from binarydm_jax.training.guards import run_goodput
from binarydm_jax.training.validation import load_features
from binarydm_jax.workdir import FREE, PATHS, SEEDS, SPEED_ONLY

REFERENCE = "reference.npz"


def get_reference(problem, workdir, network):
  """Statistics of the real images: of evaluation.reference, or of the training images, kept in the workdir.

  Args:
    network: FeatureNetwork.
  Raises:
    ValueError: the file cannot be used with this network, or there are too few images.
  """
  fields = problem.config.evaluation
  with tqdm(desc=f"reference by {network.name}", unit="img", disable=jax.process_index() != 0) as bar:
    def progress(count):
      bar.update(count)
      if jax.process_count() == 1:  # of several, some may find the file that others have written
        preemption.check()

    if fields.reference:
      protocol = adm_reference.protocol_of(fields.reference, network)
      measure = lambda: adm_reference.compute(fields.reference, network, batch_size=fields.batch_size,
                                              progress=progress)
    else:
      count = fields.reference_images or None
      protocol = reference_lib.protocol_of(network, problem.train_data, count)
      measure = lambda: reference_lib.compute(network, problem.train_data, count, batch_size=fields.batch_size,
                                              progress=progress)
    return reference_lib.cached(Path(workdir) / REFERENCE, protocol, measure, recompute=True)


def _about(reference):
  """What results.json says of the real images."""
  if reference is None:
    return None
  return dict(fid=reference.halves, what="one half of the real images against the other", **reference.protocol)


def evaluate(problem, workdir, path, costs, table, step):
  """Samples from the teacher and from the packed student, measures both, writes results.json and report.html.

  Args:
    problem: Problem.
    workdir: of the finished run.
    path: of the packed student: it is measured as it is shipped.
    costs: deploy.cost.Cost of teacher and student, as it was packed.
    table: path -> LayerRule of the student as it was packed.
    step: of its training.
  Returns:
    The results.
  """
  config = problem.config
  feature_network = load_features(config.evaluation)
  reference = get_reference(problem, workdir, feature_network) if feature_network else None
  test_inputs, test_labels = read_all(problem.test_data, config.evaluation.heldout_images)
  limited = len(test_inputs) == config.evaluation.heldout_images
  if first_stage := feed.get_first_stage(problem, workdir):
    moments = first_stage.moments(test_inputs, config.first_stage.batch_size)
    test_inputs = np.asarray(first_stage.latents(moments, None))
  binarized = any(rule.bases for rule in table.values())
  steps = config.student.steps
  unfinished = f", step {step} of {steps}" if step < steps else ""
  quantized = any(rule.weights != "float" or rule.act_bits != 32 for rule in table.values())
  kind = "1-bit student" if binarized else "quantized student" if quantized else "full precision, trained on"
  about = {
    "teacher": ("full precision teacher", "32/32"),
    "student": (
      f"{kind} ({config.method}{unfinished})",
      f"{nominal_bits(table)}/{config.quant.act_bits}",
    ),
  }
  networks = {
    "teacher": trained_network(problem, workdir, "teacher"),
    "student": packed_network(path, config, workdir),
  }
  rows = []
  by_timestep = {"first_timestep": bucket_starts(problem.schedule.num_timesteps)}
  for (name, network), cost in zip(networks.items(), costs):
    images, speed = stream_samples(
        network, workdir, name, config.sample, config.evaluation.num_samples, config.first_stage.batch_size
    )
    preemption.check()
    loss, by_timestep[name] = heldout_loss(
        network.model, network.variables, network.gates, test_inputs, test_labels, problem.schedule,
        config.diffusion.target, config.evaluation.timesteps_per_image, config.evaluation.batch_size,
    )
    preemption.check()
    measured = {"fid": None, "feature_network": None, "num_samples": len(images)}
    if feature_network:
      batches = np.array_split(images, -(-len(images) // config.evaluation.batch_size))
      measured = evaluate_samples(feature_network, batches, reference, batch_size=config.evaluation.batch_size)
    label, bits = about[name]
    rows.append(
        dict(
            name=name,
            label=label,
            bits=bits,
            true_weight_bits=cost.true_weight_bits,
            **measured,
            heldout_loss=loss,
            labels=f"i % {network.model.num_classes}: balanced" if network.model.num_classes else None,
            image_conversion="clipped to [-1, 1], (x + 1) 127.5, rounded, uint8",
            **sampling_options(config.sample),
            seed=config.sample.seed,
            size_bytes=cost.packed_bytes,
            fp32_bytes=cost.fp32_bytes,
            macs=cost.macs,
            ops=cost.ops,
            images_per_second=speed,
        )
    )
  payload, header = packed.file_sizes(path)
  results = dict(
      title=f"BinaryDM on {config.data.source}",
      method=config.method,
      models=rows,
      reference=_about(reference),
      loss_by_timestep=by_timestep,
      block_distance=_block_distances(problem, networks, test_inputs, test_labels) if config.log.diagnostics else None,
      packed=dict(
          file=Path(path).name, payload_bytes=payload, header_bytes=header, sha256=sha256_of(path), step=step,
          steps=steps,
      ),
      settings=dict(
          **problem.method._asdict(), act_bits=config.quant.act_bits, edges=config.quant.edges,
          overrides=list(config.quant.overrides), averaged=config.export.averaged, dtype=config.compute.dtype,
      ),
      heldout=dict(
          images=len(test_inputs), timesteps_per_image=config.evaluation.timesteps_per_image,
          target=config.diffusion.target, **({"of": len(problem.test_data)} if limited else {}),
      ),
      environment=environment(),
      config_sha256=config_digest(config),
      settings_sha256=config_digest(config, seeds=False),
  )
  if jax.process_index() == 0:
    (Path(workdir) / "report.html").unlink(missing_ok=True)  # of results before these
    report.write_results(Path(workdir) / "results.json", results)
    write_report(problem, workdir)
  return results


def _block_distances(problem, networks, images, labels):
  """What results.json says of `block_distance`."""
  parts = ((network.model, network.variables, network.gates) for network in networks.values())
  timesteps = middle_timesteps(problem.schedule.num_timesteps)
  distance, norm = block_distance(*parts, images, labels, problem.schedule, timesteps)
  return dict(
      blocks=problem.teacher.block_names,
      distance=distance,
      teacher_norm=norm,
      relative=distance / norm,
      images=min(len(images), MOST_IMAGES),
      timesteps=timesteps,
  )


def write_report(problem, workdir):
  """report.html and samples/comparison.png, from what the evaluation left in the workdir."""
  workdir = Path(workdir)
  results = json.loads((workdir / "results.json").read_text())
  grids = {"real": read_all(problem.test_data, 64)[0]}
  for name in ("teacher", "student"):
    grids[name] = np.array(open_samples(workdir / "samples" / f"{name}.npz")[:64])
  curves = plots.read_curves(workdir / "metrics.jsonl")
  lists = {
    "The student": results["settings"], "Held-out loss": results["heldout"], "The packed file": results["packed"]
  }
  if measured := summary.metrics_list(results["models"]):
    lists = {"All metrics": measured, **lists}
  if results["reference"]:
    hidden = ("fid", "what", "version", "network", "sha256")
    lists["The real images"] = {name: value for name, value in results["reference"].items() if name not in hidden}
  config = problem.config
  lists["Training"] = {"Seed": config.seed}
  for stage in ["teacher"] * (not config.teacher.checkpoint) + ["student"]:
    fields = config[stage]
    lists["Training"][stage.capitalize()] = (
      f"{fields.steps:,} steps, batches of {fields.batch_size}, learning rate {fields.learning_rate:g}"
    )
  lists["Training"] |= training_time(workdir, curves)
  captions = {"real": "real, held out", "teacher": "teacher, 32 bits", "student": "student, packed"}
  pictures = {captions[name]: images[:49] for name, images in grids.items()}
  plots.save_png(workdir / "samples" / "comparison.png", plots.side_by_side(pictures))
  recorded = diagnostic_plots.read_rows(workdir / "diagnostics.jsonl")
  report.write_report(workdir / "report.html", results, curves, grids, lists, recorded)


def training_time(workdir, curves):
  """What the report says of how training went: goodput over all sessions, waiting for data, steps and examples left."""
  spent = run_goodput(workdir)
  if spent is None:
    return {}
  found = {"Goodput": "{goodput:.0%} of {seconds:,.0f} seconds in {sessions} sessions were steps".format(**spent)}
  names = (("data_wait", "Waiting for data", "mean"), ("skipped_steps", "Steps without a finite loss, skipped", "max"),
           ("replaced_examples", "Examples that could not be read, replaced", "max"))  # fmt: skip
  for name, label, how in names:
    values = {stage: getattr(series[name][1], how)() for stage, series in curves.items() if name in series}
    form = "{}: {:.1%}" if how == "mean" else "{}: {:.0f}"
    found[label] = ", ".join(form.format(stage, value) for stage, value in values.items())
  return found


def is_of_first_images(heldout, limit):
  """Whether what results.json says of the held-out images (None: nothing) was written when they were the first `limit`
  of the split, instead of spread over it."""
  return bool(heldout) and heldout["images"] == limit and "of" not in heldout


def config_digest(config, seeds=True):
  """SHA-256 of what a results.json depends on; `seeds=False` leaves out what runs by other seeds may differ in."""
  free = ("log", "checkpoint", "mesh", "guard")
  fields = {name: value for name, value in config.to_dict().items() if name not in free}
  if not seeds:
    for name in (*SEEDS, *PATHS, *SPEED_ONLY, *FREE):
      section, _, field = name.partition(".")
      if field:
        del fields[section][field]
      else:
        del fields[section]
  return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def environment():
  """Versions, devices and the command, for results.json."""
  devices = jax.devices()
  return dict(
      binarydm_jax=version("binarydm_jax") if _installed() else f"{__version__}, {commit() or 'source tree'}",
      jax=jax.__version__,
      python=platform.python_version(),
      devices=f"{len(devices)} x {devices[0].device_kind}, {cpu_count()} CPU cores",
      processor=processor(),
      time=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
      command="python -m binarydm_jax.main " + shlex.join(sys.argv[1:]),
  )


def commit():
  """"commit ..." of the checkout that runs, with "-dirty" where files were edited; "" where there is none to ask."""
  command = ["git", "-C", str(PROJECT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
  try:
    done = subprocess.run(command, capture_output=True, text=True, timeout=10)
  except (OSError, subprocess.TimeoutExpired):
    return ""
  # Not that of a project into whose folders this one was copied.
  own = (PROJECT / ".git").exists()
  return f"commit {done.stdout.strip()}" if own and done.returncode == 0 else ""


def processor():
  """The CPU's name, as /proc/cpuinfo has it."""
  try:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    lines = []
  names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
  return next(names, platform.machine())


def _installed():
  try:
    return bool(version("binarydm_jax"))
  except ModuleNotFoundError:
    return False

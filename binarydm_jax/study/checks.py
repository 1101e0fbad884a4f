"""Before a study trains: whether what it is going to run can stand in one table with what is finished."""

from pathlib import Path

from binarydm_jax.evaluate import is_of_first_images
from binarydm_jax.study import plan
from binarydm_jax.study.results import add_shared, check_shared, finished_runs


def check_planned(folder, teachers, todo, network, added=()):
  """Checks the runs of `todo` against the finished ones in `folder` and in other studies.

  Args:
    teachers: of `plan.make_runs`; todo: those of its students that are going to be run, one or more.
    network: the FeatureNetwork that they will be measured with, or None.
    added: (about, records) of other studies.
  Raises:
    ValueError: their configs differ in more than the rows' own fields, a seed would have two teachers, or they would be
      measured with other features or on other images.
  """
  shared, kept = {}, list(finished_runs(folder, without={(run.row.name, run.seed) for run in todo}))
  trained = {str(run.workdir): run for run in teachers}
  teacher_of = {run.seed: trained.get(run.config.teacher.checkpoint) for run in todo}
  for row, seed, workdir, _ in kept:
    fields = plan.read_fields(workdir)
    add_shared(shared, row, seed, fields, {})
    _check_teacher(workdir, seed, Path(fields["teacher.checkpoint"]), teacher_of.get(seed))
  for run in todo:
    add_shared(shared, run.row, run.seed, plan.flat_fields(run.config), {})
  check_shared(folder, shared)
  heldout = todo[0].config.evaluation.heldout_images
  for name, features, images in [*_measured(kept), *_measured_elsewhere(added)]:
    now = network.sha256 if network else None
    if features != now:
      raise ValueError(
          f"{name} was measured with features of SHA-256 {features}, and evaluation.feature_network now has {now}: give"
          " the weights of then, or another --folder"
      )
    if is_of_first_images(images, heldout):
      raise ValueError(
          f"{name} was measured on the first {heldout} held-out images, which now are spread over all: let its row run,"
          " too, which measures it again, or give another --folder"
      )


def _check_teacher(workdir, seed, known, run):
  """`known` is the path of a finished run's teacher, `run` what is to train that of its seed, or None: it is given.

  Of a given teacher, which may be a copy, and of a folder that was moved, the digests tell afterwards.
  """
  if run is None:
    return
  moved = known.resolve() != run.workdir.resolve() and not plan.teacher_is_finished(run)
  if known.name != run.workdir.name or moved:
    raise ValueError(
        f"{workdir} was trained from {known}, and other runs of seed {seed} would be from {run.workdir}: give"
        " --teachers or --config.teacher.checkpoint as then, or another --folder"
    )


def _measured(kept):
  """(name, SHA-256 of the features or None, what results.json says of the held-out images or None) of each."""
  return [(str(workdir), results["models"][0].get("feature_sha256"), results.get("heldout"))
          for _, _, workdir, results in kept]  # fmt: skip


def _measured_elsewhere(added):
  return [("a study of --add", about["protocol"]["feature_sha256"], about.get("images", {}).get("held-out"))
          for about, _ in added]  # fmt: skip

"""Folders that look like those of finished runs, with figures of one's choice."""

import json

from binarydm_jax.evaluate import config_digest
from binarydm_jax.study import plan
from binarydm_jax.study.rows import select
from tests import tiny

MEASURED = dict(feature_network="digits_classifier", feature_sha256="ab" * 32, num_samples=96, num_reference=1500,
                sampler="ddim", steps=4, spacing="ldm", eta=0.0, clip=True, guidance=1.0, sfid=None, kid=1.5,
                inception_score=2.0, precision=0.5, recall=0.25)  # fmt: skip


def make_students(folder, rows, seeds, config=None):
  """Runs of a study of the tiny config."""
  config = config or tiny.get_config()
  return plan.make_runs("tests/tiny.py", config, {}, folder, select(rows), seeds)[1]


def make_results(run, fid, loss, **fields):
  """The contents of a results.json; `fields` are of the student."""
  teacher = dict(MEASURED, name="teacher", bits="32/32", true_weight_bits=32.0, fid=10.0 + run.seed, heldout_loss=0.1,
                 size_bytes=4 * 2**20, fp32_bytes=4 * 2**20, macs=16e6, ops=16e6)  # fmt: skip
  student = dict(MEASURED, name="student", bits="1/4", true_weight_bits=1.25, fid=fid, heldout_loss=loss,
                 size_bytes=300 * 2**10, fp32_bytes=4 * 2**20, macs=16e6, ops=2e6)  # fmt: skip
  return dict(
      title="BinaryDM on digits", method=run.config.method, models=[teacher, {**student, **fields}],
      reference=dict(what="one half against the other", fid=5.0), config_sha256=config_digest(run.config),
      environment=dict(devices="1 x cpu, 2 CPU cores", jax="0.10.2", python="3.11"),
  )  # fmt: skip


def write_run(run, fid, loss, teacher_sha256="cd" * 32, **fields):
  """All of a finished run that a study reads."""
  run.workdir.mkdir(parents=True, exist_ok=True)
  (run.workdir / "config.json").write_text(json.dumps(run.config.to_dict()))
  (run.workdir / "results.json").write_text(json.dumps(make_results(run, fid, loss, **fields)))
  (run.workdir / "inputs.json").write_text(json.dumps(dict(teacher_sha256=teacher_sha256)))
  lines = [dict(session="1", stage="student", step=step, in_steps=2.5, elapsed=10.0 * step) for step in (1, 2)]
  (run.workdir / "sessions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

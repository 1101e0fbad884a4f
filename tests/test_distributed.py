"""Who belongs to a run of several processes, and what is said when they do not come together."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from binarydm_jax.distributed import is_cluster

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("environment, several", [
  ({}, False),
  ({"SLURM_JOB_ID": "7"}, False),  # a batch script or a notebook inside of an allocation
  ({"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "1"}, False),
  ({"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "16"}, True),
  ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
  ({"TPU_WORKER_HOSTNAMES": "10.0.0.1,10.0.0.2"}, True),
  ({"MEGASCALE_COORDINATOR_ADDRESS": "10.0.0.1"}, True),
])  # fmt: skip
def test_clusters_are_known_by_their_environment(environment, several):
  assert is_cluster(environment) == several


def free_port():
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    return probe.getsockname()[1]


@pytest.mark.parametrize("flags, message", [
  (["--coordinator=localhost:1"], "--num_processes is missing: --coordinator, --num_processes and --process_id are"),
  (["--coordinator=localhost:1", "--num_processes=2", "--process_id=2"], "--process_id 2 must be below --num_proc"),
  (["--distributed=off", "--process_id=1"], "--distributed=off, and --coordinator, --num_processes or --process_id is"),
  (["--coordinator=localhost:PORT", "--num_processes=2", "--process_id=0", "--distributed_timeout=3"],
   "the processes did not come together (--distributed_timeout 3 seconds): check --coordinator, and that all"),
])  # fmt: skip
def test_one_line_for_what_is_missing(flags, message, tmp_path):
  """A flag, a process: one line, before anything is written; test_wrong_input has missing devices."""
  flags = [flag.replace("PORT", str(free_port())) for flag in flags]
  command = [sys.executable, "-m", "binarydm_jax.main", "--config=tests/tiny.py", f"--workdir={tmp_path / 'run'}"]
  environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
  done = subprocess.run(command + flags, cwd=ROOT, env=environment, capture_output=True, text=True)
  assert done.returncode == 1 and f"error: {message}" in done.stderr, done.stderr
  assert "Traceback" not in done.stderr
  assert not (tmp_path / "run" / "config.json").exists()


def test_tpu_pod_script_runs_one_command_on_all_workers():
  """What it would run, printed: the flags quoted, --distributed=on, every worker, nothing created."""
  command = ["launch/tpu_pod.sh", "pod", "us-east1-d", "--config=configs/digits.py", "--workdir=/mnt/my runs"]
  done = subprocess.run(command, cwd=ROOT, env={**os.environ, "DRY_RUN": "1"}, capture_output=True, text=True)
  words = done.stdout.replace("\\", "")
  assert words.startswith("gcloud compute tpus tpu-vm ssh pod --zone=us-east1-d --worker=all --command=")
  assert "-m binarydm_jax.main --distributed=on --config=configs/digits.py --workdir=/mnt/my runs" in words
  assert "create" not in words and "delete" not in words


@pytest.mark.parametrize("name", ["gpu.sh", "local_cluster.sh", "slurm.sbatch", "tpu_pod.sh", "quickstart.sh"])
def test_scripts_parse(name):
  assert subprocess.run(["bash", "-n", f"launch/{name}"], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("acts, code", [
  (["sleep 0.4; exit 75"] * 4, 75),  # all together, as after a signal
  (["true", "sleep 0.6"], 0),  # one after the other
  (["sleep 0.2; exit 3", "exec sleep 60"], 3),  # the other would wait for ever
])  # fmt: skip
def test_local_cluster_ends_with_its_processes(acts, code, tmp_path):
  """It answers with the first exit code that is not 0, however the processes end, and leaves none behind."""
  command = ["launch/local_cluster.sh", str(len(acts))]
  done = subprocess.run(command, cwd=ROOT, env=_acting(acts, tmp_path), capture_output=True, timeout=30)
  assert done.returncode == code, done.stderr


def test_local_cluster_passes_a_signal_on(tmp_path):
  """SIGTERM to the script reaches both processes, and it waits for them."""
  ready = [tmp_path / f"ready{i}" for i in range(2)]
  acts = [f"trap 'exit 75' TERM; touch {file}; while true; do sleep 0.1; done" for file in ready]
  cluster = subprocess.Popen(["launch/local_cluster.sh", "2"], cwd=ROOT, env=_acting(acts, tmp_path))
  begun = time.time()
  while not all(file.exists() for file in ready):
    assert time.time() < begun + 30
    time.sleep(0.02)
  cluster.terminate()
  assert cluster.wait(timeout=30) == 75


def _acting(acts, tmp_path):
  """The environment in which process i of a cluster does acts[i], a line of shell, in Python's place."""
  python = tmp_path / "python"
  python.write_text('#!/usr/bin/env bash\n[ "$1" = -c ] && exec echo 1234\nname=ACT${5#*=}\neval "${!name}"\n')
  python.chmod(0o755)
  return {**os.environ, "PYTHON": str(python), **{f"ACT{i}": act for i, act in enumerate(acts)}}

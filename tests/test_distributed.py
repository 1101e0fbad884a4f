"""Who belongs to a run of several processes, and what is said when they do not come together."""

import os
import socket
import subprocess
import sys
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
  (["--config.mesh.data=4"], "mesh.data 4 x mesh.fsdp 1 are 4 devices, and there are 1: set mesh.data to 0 for all"),
  (["--config.mesh.fsdp=2"], "mesh.fsdp 2 does not divide 1 devices"),
  (["--coordinator=localhost:PORT", "--num_processes=2", "--process_id=0", "--distributed_timeout=3"],
   "the processes did not come together (--distributed_timeout 3 seconds): check --coordinator, and that all"),
])  # fmt: skip
def test_one_line_for_what_is_missing(flags, message, tmp_path):
  """A flag, a device, a process: one line, before anything is written."""
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

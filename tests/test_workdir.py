"""What a workdir keeps of a run's inputs: one teacher, trained here or given; and what is finished in it."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from binarydm_jax import encoding, evaluate, main, modes, networks, workdir
from binarydm_jax.evaluation.features import DIGITS_SHA256
from binarydm_jax.files import sha256_of
from binarydm_jax.training import stages
from binarydm_jax.training.problem import build
from tests import tiny


@pytest.fixture
def teachers(monkeypatch):
  """{folder: weight}: what reading a teacher's checkpoint gives."""
  weights = {}
  found = lambda problem, stage, folder, steps=None: {"params": {"w": np.float32(weights[str(folder)])}}
  monkeypatch.setattr(stages, "restore_ema", found)
  return weights


def make_run(folder, teacher=True, checkpoint=""):
  """A workdir as a run leaves it."""
  (folder / "teacher" if teacher else folder).mkdir(parents=True)
  config = tiny.get_config(**{"teacher.checkpoint": checkpoint})
  (folder / "config.json").write_text(json.dumps(config.to_dict()))
  return folder


def problem_of(checkpoint=""):
  return SimpleNamespace(config=tiny.get_config(**{"teacher.checkpoint": str(checkpoint)}), teacher=None)


@pytest.mark.parametrize("first, then", [("own", "other"), ("other", "own")])
def test_the_teacher_of_a_run_stays(tmp_path, teachers, first, then):
  """Trained here and then another given, or the other way round: refused, whatever the paths are."""
  run, other = make_run(tmp_path / "run"), make_run(tmp_path / "other")
  teachers |= {str(run): 1.0, str(other): 2.0}
  given = {"own": "", "other": other}
  networks.teacher_variables(problem_of(given[first]), run)
  with pytest.raises(ValueError, match="was begun with another teacher_sha256"):
    networks.teacher_variables(problem_of(given[then]), run)
  teachers[str(other)] = teachers[str(run)] = teachers[str(run if first == "own" else other)]  # the same weights
  networks.teacher_variables(problem_of(given[then]), run)


def test_no_teacher_is_trained_for_a_run_that_had_one(tmp_path, teachers):
  """teacher.checkpoint left out of the second command: an error, and not some hours for another teacher."""
  run, other = make_run(tmp_path / "run", teacher=False), make_run(tmp_path / "other")
  teachers[str(other)] = 2.0
  networks.teacher_variables(problem_of(other), run)
  with pytest.raises(ValueError, match="with a teacher from teacher.checkpoint: give it again"):
    modes.pretrain(problem_of(), run)


def test_a_teacher_that_was_moved_away_may_be_trained_again(tmp_path, teachers, monkeypatch):
  """As the error of a damaged checkpoint says; another one than before is refused later, by its digest."""
  run = make_run(tmp_path / "run")
  teachers[str(run)] = 1.0
  networks.teacher_variables(problem_of(), run)
  (run / "teacher").rmdir()
  trained = []
  monkeypatch.setattr(stages, "pretrain", lambda problem, folder: trained.append(folder))
  modes.pretrain(problem_of(), run)
  assert trained == [run]


def test_a_run_without_a_teacher_of_its_own_is_none_to_start_from(tmp_path, monkeypatch):
  """Said with where its teacher was; and a path may begin with ~."""
  make_run(tmp_path / "run", teacher=False, checkpoint="runs/first")
  make_run(tmp_path / "first")
  monkeypatch.setenv("HOME", str(tmp_path))
  assert workdir.is_run("~/first") and not workdir.is_run(tmp_path)
  with pytest.raises(ValueError, match="is a run without a teacher of its own; its was 'runs/first'"):
    workdir.is_run("~/run")


def test_batches_of_stages_that_are_not_trained_are_not_asked_about():
  """A batch that cannot be split over these devices does not keep one from sampling or exporting."""
  config = tiny.get_config(**{"compute.accumulate": 3, "student.batch_size": 9})
  build(config, with_data=False, trains=("student",))
  build(config, with_data=False, trains=())
  with pytest.raises(ValueError, match="teacher.batch_size 8 cannot be split"):
    build(config, with_data=False)
  config.teacher.checkpoint = "some/run"
  build(config, with_data=False)


@pytest.mark.parametrize("change, finished", [
    ({}, True), ({"step": 3}, False), ({"sha256": "ab"}, False), ({"sha256": None, "step": None}, True),
    ({"features": "ab"}, False), ({"heldout": 2048}, False), ({"heldout": 297}, True),
    ({"block_distance": None}, False), ({"block_distance": {}}, True),
])
def test_what_counts_as_finished(tmp_path, change, finished):
  """Results of a student in training, of a file or features that are others since, or without the diagnostics that are
  wanted now, do not; those of before do."""
  config = tiny.get_config(**{"log.diagnostics": True})
  (tmp_path / "samples").mkdir()
  for name in (modes.PACKED, "report.html", "samples/comparison.png"):
    (tmp_path / name).write_bytes(b"x")
  packed = dict(sha256=sha256_of(tmp_path / modes.PACKED), step=6) | change
  features = packed.pop("features", DIGITS_SHA256)
  distance = {"block_distance": packed.pop("block_distance")} if "block_distance" in packed else {}
  if "heldout" in packed:
    distance["heldout"] = dict(images=packed.pop("heldout"))
  models = [dict(name="teacher", feature_sha256=features)]
  content = dict(config_sha256=evaluate.config_digest(config), packed=packed, models=models, **distance)
  (tmp_path / "results.json").write_text(json.dumps(content))
  assert (modes._finished_results(config, tmp_path) == content) is finished
  assert modes._finished_results(tiny.get_config(**{"seed": 7}), tmp_path) is None


def test_images_that_came_later(tmp_path, monkeypatch):
  """A folder that has grown splits otherwise, and what is held out would have been trained on: refused."""
  images = tmp_path / "images"
  images.mkdir()
  for i in range(20):
    Image.fromarray(np.full((8, 8), i, np.uint8)).save(images / f"{i:02d}.png")
  config = tiny.get_config(**{"data.source": f"folder:{images}", "evaluation.feature_network": "none"})
  monkeypatch.setattr(modes, "pretrain", lambda problem, folder: None)
  main.run(config, str(tmp_path / "run"), "pretrain")
  main.run(config, str(tmp_path / "run"), "pretrain")
  Image.fromarray(np.zeros((8, 8), np.uint8)).save(images / "99.png")
  with pytest.raises(ValueError, match=r"begun with another num_images \(\[18, 2\], and now \[19, 2\]\)"):
    main.run(config, str(tmp_path / "run"), "pretrain")


def test_a_teacher_of_another_split(tmp_path):
  """It has trained on images that would be held out here."""
  run = make_run(tmp_path / "teacher")
  check = lambda **changes: workdir.check_teacher(tiny.get_config(**{"teacher.checkpoint": str(run), **changes}))
  check(**{"data.holdout": 0.3})  # the digits have a split of their own
  for source, fields, refused in (
      ("folder:x", {"data.holdout": 0.3}, "data.holdout=0.1, this run 0.3"),
      ("tfds:x", {"data.holdout": 0.3}, "data.holdout=0.1, this run 0.3"),
      ("tfds:x", {"data.test_split": "test"}, "data.test_split='', this run 'test'"),
      ("tfds:x", {"data.train_split": "all"}, "data.train_split='train', this run 'all'"),
  ):
    (run / "config.json").write_text(json.dumps(tiny.get_config(**{"data.source": source}).to_dict()))
    with pytest.raises(ValueError, match=f"has {refused}; set them alike"):
      check(**{"data.source": source, **fields})
    check(**{"data.source": source + "y", **fields})
  both = {"data.source": "tfds:x", "data.test_split": "test"}
  (run / "config.json").write_text(json.dumps(tiny.get_config(**both).to_dict()))
  check(**both | {"data.test_split": "validation", "data.holdout": 0.3})


def test_guidance_by_a_teacher_without_null_class(tmp_path):
  """Its null class was never trained."""
  run = make_run(tmp_path / "teacher")
  fields = {"model.class_conditional": True, "model.null_class": True}
  guided = tiny.get_config(**fields, **{"teacher.checkpoint": str(run), "sample.guidance": 2.0})
  for dropout in (0.1, 0.0):
    config = tiny.get_config(**fields, **{"teacher.label_dropout": dropout})
    (run / "config.json").write_text(json.dumps(config.to_dict()))
    if dropout:
      workdir.check_teacher(guided)
  with pytest.raises(ValueError, match="teacher.label_dropout=0: its null class was never trained"):
    workdir.check_teacher(guided)


def test_a_teacher_of_fewer_images(tmp_path):
  """The same source has more by now: other images are held out."""
  run = make_run(tmp_path / "teacher")
  config = tiny.get_config(**{"teacher.checkpoint": str(run)})
  workdir.lock_inputs(run, num_images=[90, 10])
  for name in ("a", "b"):
    (tmp_path / name).mkdir()
  workdir.lock_images(config, tmp_path / "a", 90, 10)
  with pytest.raises(ValueError, match=r"was trained with num_images \[90, 10\], and now they are \[180, 20\]"):
    workdir.lock_images(config, tmp_path / "b", 180, 20)
  workdir.lock_images(config, tmp_path / "b", 90, 10)  # what was refused is not kept


def test_export_leaves_the_config_of_the_results(tmp_path, monkeypatch):
  """results.json belongs to config.json; another file, or latents, change nothing of either."""
  run = make_run(tmp_path / "run")
  before = (run / "config.json").read_text()
  for module, mode in ((modes, "export"), (encoding, "encode"), (modes, "binarize")):
    monkeypatch.setattr(module, mode, lambda problem, folder: None)
  changed = tiny.get_config(**{"export.remainder": "bfloat16"})
  main.run(changed, str(run), "export")
  main.run(changed, str(run), "encode")
  assert (run / "config.json").read_text() == before
  main.run(changed, str(tmp_path / "new"), "export")
  assert (tmp_path / "new" / "config.json").exists()
  main.run(changed, str(run), "binarize")
  assert json.loads((run / "config.json").read_text())["export"]["remainder"] == "bfloat16"


def test_trained_networks_are_drawn_from_without_remat(tmp_path, monkeypatch):
  """It is for gradients: samples that were drawn stay valid whatever it is."""
  monkeypatch.setattr(networks, "teacher_variables", lambda problem, folder: {})
  problem = build(tiny.get_config(**{"compute.remat": "blocks"}), with_data=False)
  assert problem.teacher.remat == "blocks"
  assert networks.trained_network(problem, tmp_path, "teacher").model.remat == "none"


def test_settings_are_known_without_their_seeds():
  """What `compare` groups by: another seed and teacher are the same settings, another rate is not."""
  fine = {"data.workers": 3, "sample.batch_size": 2, "compute.remat": "blocks", "evaluation.classifier": "x"}
  digest = lambda **changes: evaluate.config_digest(tiny.get_config(**changes), seeds=False)
  same = digest(**{"seed": 3, "sample.seed": 4, "teacher.checkpoint": "x", "log.every": 3}, **fine)
  assert digest() == same != digest(**{"student.learning_rate": 1.0})

"""Every row of a study is a config that builds; names select rows; the command says what the config does."""

import shlex

import pytest
from absl import flags
from ml_collections import config_flags

from binarydm_jax.study import plan
from binarydm_jax.study.rows import CEILING, FLOOR, GROUPS, ROWS, select
from binarydm_jax.training.methods import METHODS
from binarydm_jax.training.problem import build
from binarydm_jax.training.validation import field
from configs import cifar10_study, digits_study
from tests import tiny


def students(rows=ROWS, seeds=(1,), **changes):
  arguments = dict(config_file="tests/tiny.py", config=tiny.get_config(), overrides={}, folder="study") | changes
  return plan.make_runs(**arguments, rows=rows, seeds=seeds)[1]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_row_builds(row):
  """Its fields exist, have the right types and fit together, and the student has them."""
  (run,) = students([row])
  problem = build(run.config, with_data=False)
  for name, value in row.overrides.items():
    assert field(run.config, name) == value
  bases = max(rule.bases for rule in problem.table.values())
  one = row.group == "rivals" or row.overrides["method"] == "baseline"
  assert bases == (0 if row.name in (CEILING, "lsq_w2") else 1 if one else 2)


@pytest.mark.parametrize("row", select("transition,paper,short,prediction"), ids=lambda row: row.name)
def test_rows_of_the_transition_build_by_another_default(row):
  """Configs of studies have EBB fade to a quarter: a row that does otherwise says all of it."""
  (run,) = students([row], config=cifar10_study.get_config())
  assert build(run.config, with_data=False).table
  (paper,) = students([row])
  fields = ("transition", "fade", "tau") if row.overrides["method"] in ("ebb", "binarydm_v5") else ()
  assert [run.config.quant[name] for name in fields] == [paper.config.quant[name] for name in fields]


def test_rows_are_told_apart():
  """No two rows have the same name, or are the same network and training by every config."""
  assert len({row.name for row in ROWS}) == len({row.label for row in ROWS}) == len(ROWS)
  assert {row.group for row in ROWS} == set(GROUPS)
  by_config = (students([row], config=module.get_config())[0].config.to_json()
               for row in ROWS for module in (tiny, cifar10_study))  # fmt: skip
  pairs = list(zip(by_config, by_config, strict=True))
  assert len(set(pairs)) == len(pairs)
  assert {FLOOR, CEILING} <= {row.name for row in select("core")}
  assert {row.overrides["method"] for row in ROWS} == set(METHODS)


def test_budgets_are_equal():
  """A row changes the method; steps, batches, rate and all that is measured are the study's."""
  config = digits_study.get_config()
  for run in students(config=config):
    assert run.config.student == config.student and run.config.evaluation == config.evaluation
    assert run.config.model == config.model and run.config.diffusion == config.diffusion


@pytest.mark.parametrize("text, count", [("core", 7), ("complete", len(ROWS)), ("baseline", 1), ("lmb,core", 7),
                                         ("progressive", 4), ("binarydm_v1, baseline", 2)])
def test_select(text, count):
  """By name, by group, all; in the order of ROWS, each once."""
  rows = select(text)
  assert len(rows) == count and list(rows) == [row for row in ROWS if row in rows]


@pytest.mark.parametrize("text, wrong", [("binarydm", "binarydm"), ("", "nothing"), ("core,foo,bar", "bar, foo")])
def test_unknown_rows(text, wrong):
  with pytest.raises(ValueError, match=f"--rows names {wrong}; there are complete, core"):
    select(text)


def test_runs_go_seed_by_seed():
  """So that a study that is stopped has all rows with fewer seeds, not fewer rows."""
  runs = students(select("baseline,lmb"), seeds=(3, 5))
  assert [run.name for run in runs] == ["baseline seed 3", "lmb seed 3", "baseline seed 5", "lmb seed 5"]
  assert {run.config.sample.seed for run in runs if run.seed == 5} == {5}
  assert len({run.workdir for run in runs}) == 4


def test_equal_rows_are_run_once():
  """By the paper's settings, the default here, and by those of short runs; the first in the order of ROWS is run."""
  names = lambda config: [run.row.name for run in students(config=config)]
  paper, short = names(tiny.get_config()), names(cifar10_study.get_config())
  assert set(row.name for row in ROWS) - set(paper) == {"ebb_paper", "binarydm_v1_paper", "binarydm_v5_paper"}
  assert set(row.name for row in ROWS) - set(short) == {
      "baseline_lrm_1e-2", "lmb_lrm_1e-2", "ebb_early_fade", "binarydm_v1_short", "binarydm_v5_short"}
  (run,) = students(select("binarydm_v5_short"), config=cifar10_study.get_config())
  assert run.row.name == "binarydm_v5_short"


def test_teachers():
  """One for all by the config's seed, one for each seed, or a given one; not two of these."""
  arguments = ("tests/tiny.py", tiny.get_config(), {}, "study", select("lmb"), (1, 2))
  teachers, runs = plan.make_runs(*arguments)
  assert [(run.seed, str(run.workdir)) for run in teachers] == [(0, "study/teacher")]
  assert {run.config.teacher.checkpoint for run in runs} == {"study/teacher"}
  teachers, runs = plan.make_runs(*arguments, teacher_each=True)
  assert [(run.config.seed, str(run.workdir)) for run in teachers] == [(1, "study/teacher_1"), (2, "study/teacher_2")]
  assert [run.config.teacher.checkpoint for run in runs] == ["study/teacher_1", "study/teacher_2"]
  given = tiny.get_config(**{"teacher.checkpoint": "runs/mine"})
  teachers, runs = plan.make_runs("tests/tiny.py", given, {}, "study", select("lmb"), (1,))
  assert not teachers and runs[0].config.teacher.checkpoint == "runs/mine"
  with pytest.raises(ValueError, match="--teachers=each trains teachers, and teacher.checkpoint is given"):
    plan.make_runs("tests/tiny.py", given, {}, "study", select("lmb"), (1,), teacher_each=True)


@pytest.mark.parametrize("name", ["seed", "sample.seed"])
def test_seeds_are_the_studys(name):
  with pytest.raises(ValueError, match=f"--config.{name} is given: the runs of a study have the seeds of --seeds"):
    students(overrides={name: 3})


def test_commands_give_the_configs(monkeypatch):
  """What a run's process parses is the config that it was planned with; a row wins over the command line."""
  overrides = {"student.steps": 4, "quant.act_bits": 8, "model.channel_mult": (1, 1), "log.diagnostics": False}
  config = tiny.get_config(**overrides)
  for run in students(select("full_precision,binarydm_v5"), config=config, overrides=overrides):
    words = shlex.split(run.shell_command())
    assert words[:3] == ["python", "-m", "binarydm_jax.main"]
    monkeypatch.setattr("sys.argv", words[2:])  # config_flags looks there for the fields
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_string("mode", None, "", flag_values=values)
    values(words[2:])
    assert values.config.to_dict() == run.config.to_dict()
    assert (values.workdir, values.mode) == (str(run.workdir), "all")
    assert run.config.quant.act_bits == (32 if run.row.name == "full_precision" else 8)

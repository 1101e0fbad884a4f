"""What RESULTS.md and the tables beside it say is what the runs were measured to be (docs/results/*/results.json)."""

import re
import statistics
from pathlib import Path

import pytest

from binarydm_jax.formats import format_bytes
from binarydm_jax.study import merging
from binarydm_jax.study.results import summarize
from binarydm_jax.study.tables import to_markdown

ROOT = Path(__file__).parents[2]
STUDIES = sorted((ROOT / "docs" / "results").glob("*/results.json"))
# <!-- docs/results/digits/results.json, seeds 2, 3 -->, then a table whose first cells name rows in backticks.
MARKED = re.compile(r"<!-- (docs/results/\S+\.json)(?:, seeds ([\d, ]+))? -->\n((?:\|.*\n)+)")
TABLES = [match.groups() for match in MARKED.finditer((ROOT / "RESULTS.md").read_text())]


def rounded(values, digits, unit=""):
  """Mean ± standard deviation with as many decimals as the document's columns have."""
  std = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
  return f"{statistics.mean(values):.{digits}f}{std}{unit}"


def cell(head, metrics):
  """What stands under `head` for a row of such metrics and costs."""
  values = lambda name: metrics["metrics"][name]["values"]
  share = lambda name: rounded([100 * value for value in values(f"gap_closed_{name}")], 0, " %")
  return {
      "held-out loss": lambda: rounded(values("heldout_loss"), 4),
      "gap closed": lambda: share("heldout_loss"),
      "Frechet distance": lambda: rounded(values("fid"), 1),
      "its gap closed": lambda: share("fid"),
      "precision": lambda: rounded(values("precision"), 3),
      "recall": lambda: rounded(values("recall"), 3),
      "seeds": lambda: str(len(metrics["seeds"])),
      "true bits a weight": lambda: f"{metrics['true_weight_bits']:.2f}",
      "size": lambda: format_bytes(metrics["size_bytes"]),
  }[head]()


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.parent.name)
def test_table_of_a_study(path):
  """table.md is what `--table` writes of results.json."""
  about, records = merging.read(path)
  written = (path.parent / "table.md").read_text()
  pictures = [Path(target) for target in re.findall(r"!\[.*\]\((.*)\)", written)]
  assert pictures and all((path.parent / picture).exists() for picture in pictures)
  assert written == to_markdown(summarize(records), about, pictures)


def test_there_are_studies_and_tables():
  """The patterns above find what they are for."""
  assert len(STUDIES) >= 1 and len(TABLES) >= 5


@pytest.mark.parametrize("path, seeds, table", TABLES)
def test_figures_of_the_document(path, seeds, table):
  """Each figure under a known head, for the seeds that are named."""
  _, records = merging.read(ROOT / path)
  chosen = seeds and [int(seed) for seed in seeds.split(",")]
  summaries = {row["name"]: row for row in summarize([r for r in records if not chosen or r["seed"] in chosen])}
  heads, _, *lines = ([text.strip() for text in line.strip("|\n").split("|")] for line in table.splitlines())
  for name_cell, *cells in lines:
    row = summaries[re.search(r"`([\w-]+)`", name_cell)[1]]
    assert not chosen or row["seeds"] == chosen, name_cell
    for head, text in zip(heads[1:], cells, strict=True):
      if text:
        assert text == cell(head, row), (name_cell, head)

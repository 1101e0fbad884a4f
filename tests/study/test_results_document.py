"""What README.md, RESULTS.md and the tables beside the results say is what docs/results/*/results.json has."""

import re
from pathlib import Path

import pytest

from binarydm_jax.formats import format_bytes
from binarydm_jax.study import merging
from binarydm_jax.study.results import summarize
from binarydm_jax.study.tables import format_metric, to_markdown

ROOT = Path(__file__).parents[2]
STUDIES = sorted((ROOT / "docs" / "results").glob("*/results.json"))
# <!-- docs/results/digits/results.json, seeds 2, 3 -->, then a table whose first cells name rows in backticks.
MARKED = re.compile(r"<!-- (docs/results/\S+\.json)(?:, seeds ([\d, ]+))? -->\n((?:\|.*\n)+)")
DOCUMENTS = "".join((ROOT / name).read_text() for name in ("README.md", "RESULTS.md"))
TABLES = [match.groups() for match in MARKED.finditer(DOCUMENTS)]


METRICS = {
  "held-out loss": "heldout_loss", "gap closed": "gap_closed_heldout_loss", "Frechet distance": "fid",
  "its gap closed": "gap_closed_fid", "precision": "precision", "recall": "recall",
}  # fmt: skip


def cell(head, row):
  """What stands under `head`, as in the study's own table; precision and recall with a decimal less."""
  if head == "true bits a weight":
    return f"{row['true_weight_bits']:.2f}"
  if head == "size":
    return format_bytes(row["size_bytes"])
  metric = row["metrics"][METRICS[head]]
  if head in ("precision", "recall"):
    return f"{metric['mean']:.3f} ± {metric['std']:.3f}"
  return format_metric(METRICS[head], metric, len(row["seeds"]))


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
  assert len(STUDIES) >= 2 and len(TABLES) >= 7


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
      assert text == cell(head, row), (name_cell, head)

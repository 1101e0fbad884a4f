"""Table and words: numbers by hand, and sentences that say what is lost too."""

import copy
import re

import pytest

from binarydm_jax import report, summary

RESULTS = {
    "title": "Digits",
    "method": "binarydm_v1",
    "models": [
        {"name": "teacher", "label": "teacher", "bits": "32/32", "true_weight_bits": 32.0, "fid": 0.31,
         "feature_network": "digits_classifier", "feature_sha256": "ab", "heldout_loss": 0.2, "num_samples": 1024,
         "sampler": "ddim", "steps": 50, "eta": 0.0, "size_bytes": 3 * 2**20, "fp32_bytes": 3 * 2**20, "ops": 12e6,
         "images_per_second": 30.14, "seed": 0},
        {"name": "student", "label": "1-bit student", "bits": "1/4", "true_weight_bits": 1.125, "fid": 0.52,
         "feature_network": "digits_classifier", "feature_sha256": "ab", "heldout_loss": 0.21, "num_samples": 1024,
         "sampler": "ddim", "steps": 50, "eta": 0.0, "size_bytes": 240 * 2**10, "fp32_bytes": 3 * 2**20, "ops": 1.25e6,
         "images_per_second": 30.14, "seed": 0},
    ],
    "reference": {"fid": 0.2, "what": "half of the real images against the other half"},
    "environment": {"jax": "0.10.0", "command": "python -m binarydm_jax.main"},
}


def changed(**fields):
  """RESULTS with fields of the student replaced."""
  results = copy.deepcopy(RESULTS)
  results["models"][1].update(fields)
  return results


def test_table_rows_by_hand():
  assert summary.table_rows(RESULTS) == [
      ["teacher", "32/32", "32.00", "0.310", "0.2000", "3.00 MiB", "1.0x", "12.0 M", "1.0x"],
      ["1-bit student", "1/4", "1.12", "0.520", "0.2100", "240 KiB", "12.8x", "1.25 M", "9.6x"],  # 3072/240, 12/1.25
  ]


def test_table_text_is_aligned_and_says_gain_and_loss():
  lines = summary.format_table(RESULTS).split("\n")
  rule = next(i for i, line in enumerate(lines) if line.startswith("---"))
  assert {len(line) for line in lines[rule - 1 : rule + 3]} == {len(lines[rule])}
  assert len(lines[rule]) <= 100
  words = " ".join(lines[rule + 3 :])
  assert "1-bit student: 12.8x smaller (240 KiB instead of 3.00 MiB), 9.6x fewer operations." in words
  assert "Its Frechet distance is worse, 0.520 against the teacher's 0.310" in words
  assert "held-out loss is worse, 0.2100 against the teacher's 0.2000 (+5.0 %)" in words
  assert "features of digits_classifier" in words and "not comparable with published FID" in words
  assert "half of the real images against the other half gives 0.200" in words


@pytest.mark.parametrize("fields, words", [
    ({"fid": None}, "Frechet distance was not measured"),
    ({"fid": float("nan")}, "Frechet distance is not a finite number"),
    ({"fid": 0.25}, "Frechet distance is better, 0.250 against the teacher's 0.310"),
    ({"fid": 0.31}, "Frechet distance is the teacher's to the digits shown, 0.310"),
    ({"feature_network": "inception"}, "cannot be compared with the teacher's"),
    ({"feature_sha256": "cd"}, "cannot be compared with the teacher's"),
    ({"heldout_loss": None}, "held-out loss was not measured"),
    ({"heldout_loss": 0.19}, "held-out loss is better, 0.1900 against the teacher's 0.2000 (-5.0 %)"),
    ({"size_bytes": 6 * 2**20}, "2.0x larger"),
    ({"ops": 24e6}, "2.0x more operations"),
    ({"ops": None, "size_bytes": None}, "neither size nor operations are known"),
    ({"num_samples": 64}, "numbers of samples differ"),
])
def test_words_are_honest(fields, words, tmp_path):
  """On the terminal and on the page."""
  results = changed(**fields)
  assert words in " ".join(summary.format_table(results).split())
  report.write_report(tmp_path / "report.html", results, None, None)
  page = (tmp_path / "report.html").read_text(encoding="utf-8")
  assert words in re.sub(r"\s+", " ", page).replace("&#x27;", "'")


def test_one_model_alone():
  for index in (0, 1):
    assert RESULTS["models"][index]["label"] in summary.format_table(RESULTS | {"models": [RESULTS["models"][index]]})


def test_metrics_are_called_by_their_network():
  """Inception's names belong to Inception's features; what was not measured is left out."""
  models = [{"label": "teacher", "feature_network": "inception", "fid": 3.0, "kid": 0.01, "kid_std": 0.002},
            {"label": "student", "feature_network": "inception", "fid": 7.0, "kid": None, "recall": 0.5}]  # fmt: skip
  assert summary.metrics_list(models) == {
    "FID": "3.00 (teacher), 7.00 (student)", "KID": "0.0100 ± 0.00200 (teacher)", "Recall": "0.500 (student)"
  }
  for model in models:
    model["feature_network"] = "digits_classifier"
  assert list(summary.metrics_list(models)) == ["Frechet distance", "Kernel distance (KID's formula)", "Recall"]

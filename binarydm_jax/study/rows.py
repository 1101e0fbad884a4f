"""What a study compares: each row is a method by name, as overrides of the study's config."""

from typing import NamedTuple

BASELINE, LMB, EBB = ({"method": name} for name in ("baseline", "lmb", "ebb"))
V1, V5 = {"method": "binarydm_v1"}, {"method": "binarydm_v5"}
# Said in full, since a study's config may have others: of the paper, and of runs of hundreds of steps (RESULTS.md).
PAPER_LRM, STRONG_LRM = {"distill.weight": 1e-4}, {"distill.weight": 1e-2}
HALF, EARLY_FADE = {"quant.transition": 0.5, "quant.fade": 0.0}, {"quant.fade": 0.25, "quant.transition": 0.25}
IMITATE, STRONGLY = {"distill.prediction": "on"}, {"distill.prediction_weight": 10.0}
RIVALS = {
    "reactnet": "ReActNet", "insta_bnn": "like INSTA-BNN", "bi_diffsr": "BI-DiffSR", "q_dm": "like Q-DM", "tdq": "TDQ",
}  # fmt: skip
# The ends of the scale on which a row's share of the gap is measured.
FLOOR, CEILING = "baseline", "full_precision"


class Row(NamedTuple):
  """name: of the folder of its runs. label: in tables. group: of rows shown together. overrides: of the config."""

  name: str
  label: str
  group: str
  overrides: dict


def _lrm(name, label, base):
  """A base with every kind of low-rank mimicking."""
  rows = (
      ("lrm", "LRM (randomized PCA, K = 4)", "randomized_pca", 4),
      ("lrm_k2", "LRM (randomized PCA, K = 2)", "randomized_pca", 2),
      ("lrm_k8", "LRM (randomized PCA, K = 8)", "randomized_pca", 8),
      ("lrm_pca", "LRM (exact PCA, K = 4)", "pca", 4),
      ("lrm_random", "LRM (random projection, K = 4)", "random", 4),
      ("lrm_none", "plain feature MSE", "none", 4),
  )
  return tuple(
      Row(f"{name}_{kind}", f"{label} + {what}", "lrm",
          {**base, "distill.projection": projection, "distill.reduction": reduction})
      for kind, what, projection, reduction in rows
  )  # fmt: skip


def _activations(name, label, base):
  """Other bits than the config's, which are those of the core rows."""
  return tuple(
      Row(f"{name}_a{bits}", f"{label}, {'float' if bits == 32 else f'{bits}-bit'} activations", "activations",
          {**base, "quant.act_bits": bits})
      for bits in (32, 8)
  )  # fmt: skip


def _asymmetric(name, label, base):
  """Levels of activations that fit each input, without and with the teacher's predictions imitated."""
  levels = {**base, "quant.activation": "asymmetric"}
  return (
      Row(f"{name}_asymmetric", f"{label}, asymmetric activations", "asymmetric", levels),
      Row(f"{name}_asymmetric_prediction_10", f"{label}, asymmetric activations, + prediction, ten times", "asymmetric",
          {**levels, **IMITATE, **STRONGLY}),
  )  # fmt: skip


ROWS = (
    # Trained for as many steps as every other row, so that these are not what sets it apart.
    Row("full_precision", "full precision, trained on", "core",
        {"method": "baseline", "quant.weights": "full_precision", "quant.act_bits": 32, "quant.edges": "float"}),
    Row("lsq_w2", "LSQ, 2-bit weights", "core", {"method": "lsq", "quant.weight_bits": 2}),
    Row("baseline", "baseline: one basis", "core", BASELINE),
    Row("lmb", "LMB", "core", LMB),
    Row("ebb", "EBB", "core", EBB),
    Row("binarydm_v1", "BinaryDM v1: LMB + LRM + progressive", "core", V1),
    Row("binarydm_v5", "BinaryDM v5: EBB + LRM", "core", V5),
    *_lrm("baseline", "baseline", BASELINE),
    *_lrm("lmb", "LMB", LMB),
    Row("baseline_lrm_1e-2", "baseline + LRM, lambda 0.01", "lrm_weight",
        {**BASELINE, "distill.projection": "randomized_pca", **STRONG_LRM}),
    Row("lmb_lrm_1e-2", "LMB + LRM, lambda 0.01", "lrm_weight",
        {**LMB, "distill.projection": "randomized_pca", **STRONG_LRM}),
    Row("lmb_lrm_1e-1", "LMB + LRM, lambda 0.1", "lrm_weight",
        {**LMB, "distill.projection": "randomized_pca", "distill.weight": 1e-1}),
    Row("v5_fade_lrm_3e-2", "BinaryDM v5, EBB fading to a quarter, lambda 0.03", "lrm_weight",
        {**V5, **EARLY_FADE, "distill.weight": 3e-2}),
    Row("baseline_blocks", "baseline + progressive by blocks", "progressive",
        {**BASELINE, "quant.progressive": "blocks"}),
    Row("baseline_levels", "baseline + progressive by levels", "progressive",
        {**BASELINE, "quant.progressive": "levels"}),
    Row("lmb_blocks", "LMB + progressive by blocks", "progressive", {**LMB, "quant.progressive": "blocks"}),
    Row("lmb_levels", "LMB + progressive by levels", "progressive", {**LMB, "quant.progressive": "levels"}),
    Row("ebb_early", "EBB, gone after a quarter of the steps", "transition", {**EBB, **HALF, "quant.transition": 0.25}),
    Row("ebb_tau", "EBB, tau ten times", "transition", {**EBB, **HALF, "quant.tau": 0.9}),
    Row("ebb_fade", "EBB, fading to the half", "transition", {**EBB, **HALF, "quant.fade": 0.5}),
    Row("ebb_early_fade", "EBB, fading to a quarter", "transition", {**EBB, **EARLY_FADE}),
    Row("binarydm_v5_fade", "BinaryDM v5, fading to the half", "transition", {**V5, **HALF, "quant.fade": 0.5}),
    Row("ebb_paper", "EBB, dropped at the half", "paper", {**EBB, **HALF}),
    Row("binarydm_v1_paper", "BinaryDM v1, lambda 0.0001", "paper", {**V1, **PAPER_LRM}),
    Row("binarydm_v5_paper", "BinaryDM v5, lambda 0.0001, EBB dropped at the half", "paper",
        {**V5, **PAPER_LRM, **HALF}),
    Row("binarydm_v1_short", "BinaryDM v1, lambda 0.01", "short", {**V1, **STRONG_LRM}),
    Row("binarydm_v5_short", "BinaryDM v5, lambda 0.01, EBB fading to a quarter", "short",
        {**V5, **STRONG_LRM, **EARLY_FADE}),
    Row("baseline_prediction", "baseline + prediction", "prediction", {**BASELINE, **IMITATE}),
    Row("binarydm_v1_prediction", "BinaryDM v1, lambda 0.01, + prediction", "prediction",
        {**V1, **STRONG_LRM, **IMITATE}),
    Row("binarydm_v5_prediction", "BinaryDM v5, lambda 0.01, EBB fading to a quarter, + prediction", "prediction",
        {**V5, **STRONG_LRM, **EARLY_FADE, **IMITATE}),
    Row("baseline_prediction_10", "baseline + prediction, ten times", "prediction",
        {**BASELINE, **IMITATE, **STRONGLY}),
    Row("binarydm_v1_prediction_10", "BinaryDM v1, lambda 0.01, + prediction, ten times", "prediction",
        {**V1, **STRONG_LRM, **IMITATE, **STRONGLY}),
    Row("binarydm_v5_prediction_10", "BinaryDM v5, lambda 0.01, EBB fading to a quarter, + prediction, ten times",
        "prediction", {**V5, **STRONG_LRM, **EARLY_FADE, **IMITATE, **STRONGLY}),
    *_asymmetric("baseline", "baseline", BASELINE),
    *_asymmetric("binarydm_v1", "BinaryDM v1, lambda 0.01", {**V1, **STRONG_LRM}),
    *_asymmetric("binarydm_v5", "BinaryDM v5, lambda 0.01, EBB fading to a quarter",
                 {**V5, **STRONG_LRM, **EARLY_FADE}),
    *_activations("baseline", "baseline", BASELINE),
    *_activations("binarydm_v1", "BinaryDM v1", V1),
    *_activations("binarydm_v5", "BinaryDM v5", V5),
    *(Row(name, label, "rivals", {"method": name}) for name, label in RIVALS.items()),
)  # fmt: skip

GROUPS = {
    "core": "The method and its parts",
    "lrm": "Low-rank representation mimicking: projection and rank",
    "lrm_weight": "Low-rank representation mimicking: its weight",
    "progressive": "Progressive initialisation",
    "transition": "How EBB's second basis leaves",
    "prediction": "The teacher's predictions imitated as well (noise-estimating mimicking, of Q-DM)",
    "asymmetric": "Asymmetric levels of the activations, with and without the teacher's predictions",
    "paper": "The method with the paper's weight of LRM and end of EBB",
    "short": "The method, set for short runs",
    "rivals": "Other methods that train, one basis each; not made: Q-Diffusion (no training), EfficientDM (adapters)",
    "activations": "Bits of the activations, where they are not those above",
}


def select(text):
  """"core", "complete", or names of rows and groups with commas -> those rows, in the order of ROWS.

  Raises:
    ValueError: a name that is neither.
  """
  names = {name.strip() for name in text.split(",") if name.strip()}
  known = {row.name for row in ROWS} | set(GROUPS) | {"complete"}
  if not names or names - known:
    wrong = ", ".join(sorted(names - known)) or "nothing"
    raise ValueError(f"--rows names {wrong}; there are complete, {', '.join(GROUPS)}, "
                     f"{', '.join(row.name for row in ROWS)}")
  return tuple(row for row in ROWS if {"complete", row.name, row.group} & names)

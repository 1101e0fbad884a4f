"""Whole methods by name: what `method` stands for in the fields that say "method"."""

from typing import NamedTuple

from binarydm_jax.quant import RIVALS


class Method(NamedTuple):
  """Parts of a method, by the fields that say "method": `quant.weights`, `distill.projection`, `quant.progressive`,
  `quant.activation`, `quant.response`, `distill.prediction`."""

  weights: str
  projection: str
  progressive: str
  activation: str = "lsq"
  response: str = "none"
  prediction: str = "off"


METHODS = {
  "binarydm_v1": Method("lmb", "randomized_pca", "blocks"),
  "binarydm_v5": Method("ebb", "randomized_pca", "none"),
  "baseline": Method("baseline", "off", "none"),
  "lmb": Method("lmb", "off", "none"),
  "ebb": Method("ebb", "off", "none"),
  "lsq": Method("lsq", "off", "none"),
  # Those that the paper compares with: one basis, and what they do to activations (quant/rivals). Q-DM imitates the
  # teacher's prediction.
  **{name: Method("baseline", "off", "none", *how, prediction="on" if name == "q_dm" else "off")
     for name, how in RIVALS.items()},
}  # fmt: skip


def resolve_method(name, **parts):
  """The Method `name` with each part that is given and not "method" replaced.

  Args:
    **parts: fields of Method.
  Raises:
    ValueError: unknown name.
  """
  if name not in METHODS:
    raise ValueError(f"method {name!r} is not one of {', '.join(METHODS)}")
  return METHODS[name]._replace(**{part: value for part, value in parts.items() if value != "method"})

"""Whole methods by name: what `method` stands for in the fields that say "method"."""

from typing import NamedTuple


class Method(NamedTuple):
  weights: str
  projection: str
  progressive: str


METHODS = {
  "binarydm_v1": Method("lmb", "randomized_pca", "blocks"),
  "binarydm_v5": Method("ebb", "randomized_pca", "none"),
  "baseline": Method("baseline", "off", "none"),
  "lmb": Method("lmb", "off", "none"),
  "ebb": Method("ebb", "off", "none"),
  "lsq": Method("lsq", "off", "none"),
}


def resolve_method(name, weights, projection, progressive):
  """The Method `name` with each part that is not "method" replaced.

  Raises:
    ValueError: unknown name.
  """
  if name not in METHODS:
    raise ValueError(f"method {name!r} is not one of {', '.join(METHODS)}")
  given = Method(weights, projection, progressive)
  return Method(*(part if part != "method" else default for part, default in zip(given, METHODS[name])))

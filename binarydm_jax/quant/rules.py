"""Which layer is quantized how: rules from path patterns to `LayerRule`, resolved once per model into a table.

A path is the layer's flax path joined by "/", as in "input_1/res/conv1"; a pattern is a shell glob over it ("*" crosses
"/"). The resolution of a layer is that of its block (the outermost module under the root that holds it): the smaller
of the block's input and output feature maps, relative to the network input's; 1 where a block has no feature map.
"""

import dataclasses
import fnmatch
from collections.abc import Mapping

WEIGHT_QUANTIZERS = ("float", "one_basis", "multi_basis", "evolving", "lsq")
WEIGHT_PRESETS = ("full_precision", "baseline", "lmb", "ebb", "lsq")
ACTIVATION_BITS = (32, 8, 4, 3, 2)
# See quant/activations.py, and quant/rivals from the third on. The first four hold for any input; shifts are per
# channel of a layer's input.
ACTIVATIONS = ("lsq", "asymmetric", "normalised", "dynamic", "shifted", "instance", "redistributed")
_OF_ANY_INPUT = ACTIVATIONS[:4]
INTEGER_ACTIVATIONS = ACTIVATIONS[:2]  # a step and a zero point an input: the packed runtime computes in integers
RESPONSES = ("none", "rprelu", "timed_rprelu")
# Published methods as (activation, response), with weights of one basis.
RIVALS = {
  "reactnet": ("shifted", "rprelu"),
  "insta_bnn": ("instance", "rprelu"),
  "bi_diffsr": ("redistributed", "timed_rprelu"),
  "q_dm": ("normalised", "none"),
  "tdq": ("dynamic", "none"),
}


def _by_range(activation, response):
  """Whether either has variables for each range of timesteps."""
  return activation == "redistributed" or response == "timed_rprelu"


@dataclasses.dataclass(frozen=True)
class LayerRule:
  """What happens to one layer.

  Attributes:
    weights: "float"; "one_basis" (baseline); "multi_basis" (LMB, both bases for ever); "evolving" (EBB, the second
      basis is removed by the gate `second`); "lsq" (`weight_bits` bits).
    weight_bits: bits of "lsq" weights, 2 to 8.
    act_bits: bits of the layer's input (of q, k, softmax and v in a `QuantMatmul`): 32 (off), 2 to 8.
    activation: how the input is quantized. "lsq": by one learned step, signed levels; "asymmetric": with as many levels
      below zero as fit the input. Methods compared with BinaryDM (quant/rivals), each with that step: "shifted"
      (ReActNet), "instance" (INSTA-BNN), "redistributed" (BI-DiffSR), "normalised" (Q-DM), "dynamic" (TDQ).
    response: what follows the product and the bias: "none", "rprelu" (ReActNet), "timed_rprelu" (BI-DiffSR).
    num_timesteps: of the diffusion, for "redistributed" and "timed_rprelu", else 0.
  """

  weights: str = "float"
  weight_bits: int = 2
  act_bits: int = 32
  activation: str = "lsq"
  response: str = "none"
  num_timesteps: int = 0

  def __post_init__(self):
    if self.weights not in WEIGHT_QUANTIZERS:
      raise ValueError(f"weights {self.weights!r} is not one of {', '.join(WEIGHT_QUANTIZERS)}")
    if self.weights == "lsq" and self.weight_bits not in range(2, 9):
      raise ValueError(f"weight_bits {self.weight_bits} is not supported: use 2 to 8, or one_basis for 1 bit")
    if self.act_bits != 32 and self.act_bits not in range(2, 9):
      raise ValueError(f"act_bits {self.act_bits} is not supported: use 2 to 8, or 32 for off")
    if self.activation not in ACTIVATIONS:
      raise ValueError(f"activation {self.activation!r} is not one of {', '.join(ACTIVATIONS)}")
    if self.response not in RESPONSES:
      raise ValueError(f"response {self.response!r} is not one of {', '.join(RESPONSES)}")
    if self.activation != "lsq" and self.act_bits == 32:
      raise ValueError(f"activation {self.activation!r} needs act_bits below 32: it changes what is quantized")
    if _by_range(self.activation, self.response) and self.num_timesteps < 1:
      raise ValueError(f"{self.activation!r}, {self.response!r} need num_timesteps, those of the diffusion")

  @property
  def plain(self):
    """Whether integers can compute it: no more than a step and a zero point an input, nothing after the product."""
    return self.activation in INTEGER_ACTIVATIONS and self.response == "none"

  @property
  def timed(self):
    """Whether the layer must be told the timesteps, see `LayerGate`."""
    return self.activation == "dynamic" or _by_range(self.activation, self.response)

  def of_product(self):
    """The rule as it holds for a product of two activations, which has no weights, channels or response."""
    activation = self.activation if self.activation in _OF_ANY_INPUT else "lsq"
    return dataclasses.replace(self, weights="float", activation=activation, response="none", num_timesteps=0)

  @property
  def bases(self):
    """How many sign bases the weights have (0 if they are not binarized)."""
    return {"one_basis": 1, "multi_basis": 2, "evolving": 2}.get(self.weights, 0)


FULL_PRECISION = LayerRule()


def needs_timesteps(rules):
  """Whether any layer of a table (None: full precision) has to be told the timesteps, see `LayerGate`."""
  table = rules.values() if isinstance(rules, Mapping) else (rules,)
  return any(isinstance(rule, LayerRule) and rule.timed for rule in table)


@dataclasses.dataclass(frozen=True)
class Rule:
  """`layer` for the layers whose path matches `pattern` and whose resolution is at least `min_resolution`."""

  pattern: str
  layer: LayerRule
  min_resolution: float = 0.0
  # A preset's rule may find nothing in a small network; a rule that somebody wrote must not.
  optional: bool = False

  def matches(self, path, resolution):
    return fnmatch.fnmatchcase(path, self.pattern) and resolution >= self.min_resolution


@dataclasses.dataclass(frozen=True)
class Rules:
  """An ordered list of rules: the first that matches decides; a layer that none matches is an error."""

  rules: tuple

  def before(self, *rules):
    """These rules with others in front of them."""
    return Rules(tuple(rules) + self.rules)

  def resolve(self, layers):
    """The table path -> LayerRule for `layers` (from `inspect_layers`).

    Raises:
      ValueError: a rule matches no layer, all its layers are taken by earlier rules, or a layer has no rule.
    """
    table = {}
    matched, used = set(), set()
    for layer in layers:
      hits = [i for i, rule in enumerate(self.rules) if rule.matches(layer.path, layer.resolution)]
      if not hits:
        raise ValueError(f"no rule matches layer {layer.path!r}; end the rules with one for '*'")
      matched.update(hits)
      used.add(hits[0])
      rule = self.rules[hits[0]].layer
      table[layer.path] = rule.of_product() if layer.kind == "matmul" else rule
    for i, rule in enumerate(self.rules):
      if rule.optional or i in used:
        continue
      if i in matched:
        raise ValueError(f"rule {rule.pattern!r} has no effect: earlier rules take every layer that it matches")
      raise ValueError(f"rule {rule.pattern!r} matched no layer; `--mode=info` lists the paths")
    return table


def preset(
  weights, act_bits=32, weight_bits=2, edges=(), edge_bits=32, activation="lsq", response="none", num_timesteps=0
):
  """The rules of a published method.

  Args:
    weights: "full_precision"; "baseline" (one basis); "lmb" and "ebb" (two bases where the block's resolution is at
      least half of the input's, one elsewhere: the paper's location rule); "lsq" (`weight_bits` bits); a name of RIVALS
      (one basis, with activation and response of that method).
    act_bits: activation bits of every quantized layer: 32 (off), 8, 4, 3, 2.
    weight_bits: for "lsq", 2 to 8.
    edges: patterns of the layers next to input and output, which are never binarized.
    edge_bits: 32 leaves them in float; 8 makes them W8A8 by LSQ (v5's practice).
    activation, response: of every layer but the edges, see `LayerRule`.
    num_timesteps: of the diffusion; used where activation or response has ranges of them.
  Raises:
    ValueError: an unknown preset or number of bits.
  """
  if weights in RIVALS:
    if (activation, response) not in (("lsq", "none"), RIVALS[weights]):
      raise ValueError(f"preset {weights!r} has activation and response of its own: give \"baseline\" others")
    weights, (activation, response) = "baseline", RIVALS[weights]
  if weights not in WEIGHT_PRESETS:
    raise ValueError(f"weights {weights!r} is not one of {', '.join((*WEIGHT_PRESETS, *RIVALS))}")
  if act_bits not in ACTIVATION_BITS:
    raise ValueError(f"act_bits {act_bits} is not supported: use one of {', '.join(map(str, ACTIVATION_BITS))}")
  if edge_bits not in (8, 32):
    raise ValueError(f"edge_bits {edge_bits} is not supported: use 8 or 32")
  edge = FULL_PRECISION if edge_bits == 32 else LayerRule("lsq", edge_bits, edge_bits)
  rules = [Rule(pattern, edge, optional=True) for pattern in edges]
  how = dict(act_bits=act_bits, activation=activation, response=response)
  if _by_range(activation, response):
    how["num_timesteps"] = num_timesteps
  if weights == "full_precision":
    return Rules((*rules, Rule("*", LayerRule(**how), optional=True)))
  if weights == "lsq":
    return Rules((*rules, Rule("*", LayerRule("lsq", weight_bits, **how), optional=True)))
  if weights in ("lmb", "ebb"):
    two = LayerRule("multi_basis" if weights == "lmb" else "evolving", **how)
    rules.append(Rule("*", two, min_resolution=0.5, optional=True))
  return Rules((*rules, Rule("*", LayerRule("one_basis", **how), optional=True)))


def deployed_table(table):
  """The rules of a finished student as deployed: an evolving second basis is gone, one basis is left."""
  return {
      path: dataclasses.replace(rule, weights="one_basis") if rule.weights == "evolving" else rule
      for path, rule in table.items()
  }


def parse_override(text):
  """"PATTERN=WEIGHTS/BITS" -> Rule, as in "middle/*=lsq4/8" (4-bit LSQ weights, 8-bit activations) or "*/up=float/32".

  WEIGHTS is float, one_basis, multi_basis, evolving, or lsqN with N bits.
  """
  try:
    pattern, what = text.split("=")
    weights, act_bits = what.split("/")
    act_bits = int(act_bits)
    weight_bits = 2
    if weights.startswith("lsq"):
      weights, weight_bits = "lsq", int(weights[3:])
  except ValueError:
    raise ValueError(f"rule {text!r} is not PATTERN=WEIGHTS/ACT_BITS, such as 'middle/*=lsq4/8'") from None
  return Rule(pattern, LayerRule(weights, weight_bits, act_bits))

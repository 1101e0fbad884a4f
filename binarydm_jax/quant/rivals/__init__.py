"""What the methods that BinaryDM is compared with do to a layer's input and output: array functions, one file a method.

They are options of `LayerRule` (`activation`, `response`), so weights, training and the packed file are those of
BinaryDM's baseline. `learned.py` says which variables of the collection `quant` they own and starts them, so that all
but "normalised" begin as the baseline's student; `apply.py` applies them.

Operations beside the layer's product, which `deploy.cost` does not count, as the papers do not: an addition an input
value ("shifted", "redistributed"), nine operations an input value ("instance"), seven ("normalised"), some 550
multiply-accumulates an input tensor and timestep, which could be made a table ("dynamic"); four an output value
("rprelu", "timed_rprelu").
"""

from binarydm_jax.quant.rivals.apply import quantize, respond
from binarydm_jax.quant.rivals.learned import NAMES, activation_shapes, operands, response_shapes

__all__ = ["NAMES", "activation_shapes", "operands", "quantize", "respond", "response_shapes"]

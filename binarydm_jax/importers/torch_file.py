"""PyTorch files without running what is pickled in them."""

import re

from binarydm_jax.importers.mapping import CheckpointError

# Training frameworks leave objects of these packages beside the tensors (Lightning: its callbacks as dictionary keys).
# They become inert stand-ins; code of any other package makes the file refused.
INERT = ("pytorch_lightning.", "lightning.", "lightning_fabric.", "omegaconf.")


class _StandIn:
  """Takes the place of a class that is not loaded: accepts whatever it is built from, does nothing."""

  def __init__(self, *args, **kwargs):
    pass

  def __setstate__(self, state):
    pass

  def __hash__(self):
    return id(self)


def _stand_in(name):
  """A class of its own for each name: two that were different dictionary keys stay so."""
  return type(name.rsplit(".", 1)[-1], (_StandIn,), {})


def read_torch(path):
  """The object in a file written by `torch.save`, made of containers, numbers and tensors on the CPU.

  Raises:
    CheckpointError: torch is not installed, the file is unreadable, or it holds pickled code.
  """
  try:
    import torch
  except ImportError:
    raise CheckpointError(f"{path} is a PyTorch file: importing it needs `pip install torch`") from None
  stand_ins = {}
  while True:
    try:
      with torch.serialization.safe_globals([(c, name) for name, c in stand_ins.items()]):
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
      raise CheckpointError(f"{path} does not exist") from None
    except Exception as error:  # a broken file raises of everything: RuntimeError, EOFError, KeyError, UnpicklingError
      found = re.search(r"Unsupported global: GLOBAL ([\w.]+)", str(error))
      name = found and found[1]
      if name and name.startswith(INERT) and name not in stand_ins:
        stand_ins[name] = _stand_in(name)
        continue
      if name:
        raise CheckpointError(f"{path} holds pickled code ({name}), which is not run: give a file of tensors") from None
      reason = " ".join(str(error).split())[:160] or type(error).__name__
      raise CheckpointError(f"{path} is not a readable checkpoint ({reason})") from None

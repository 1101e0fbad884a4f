"""PyTorch files without running what is pickled in them."""

import re
import zipfile

from binarydm_jax.importers.mapping import CheckpointError

# Lightning leaves its callbacks beside the tensors (as dictionary keys), metrics leave numpy scalars. They become inert
# stand-ins; code of any other package makes the file refused.
INERT = ("pytorch_lightning.", "lightning.", "lightning_fabric.", "numpy.", "_codecs.")
# Earlier versions had ways round `weights_only`.
LEAST_TORCH = (2, 10)


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
    CheckpointError: torch is missing or too old, the file is unreadable, or it holds pickled code.
  """
  try:
    import torch
  except ImportError:
    raise CheckpointError(f"{path} is a PyTorch file: importing it needs `pip install torch`") from None
  if tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) < LEAST_TORCH:
    raise CheckpointError(f"{path}: torch {torch.__version__} is too old for untrusted files; install 2.10 or later")
  stand_ins = {}
  while True:
    try:
      with torch.serialization.safe_globals([(c, name) for name, c in stand_ins.items()]):
        # Mapped: what is not used (optimizer states, raw weights beside averaged ones) is never read.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except FileNotFoundError:
      raise CheckpointError(f"{path} does not exist") from None
    except Exception as error:  # a broken file raises of everything: RuntimeError, EOFError, KeyError, UnpicklingError
      name, reason = _refused(str(error))
      if name and name.startswith(INERT) and name not in stand_ins:
        stand_ins[name] = _stand_in(name)
        continue
      if name:
        raise CheckpointError(f"{path} holds pickled code ({name}), which is not run: give a file of tensors") from None
      raise CheckpointError(f"{path} is not a readable checkpoint ({reason or type(error).__name__})") from None


def _refused(message):
  """(name of the global that torch refuses to load or None, the reason in one line without torch's advice)."""
  found = re.search(r"(?:Unsupported global: GLOBAL|unsupported GLOBAL) ([\w.]+)", message)
  reason = re.search(r"WeightsUnpickler error: ([^\n]*)", message)
  text = " ".join((reason[1] if reason else message).split())[:160]
  return found and found[1], text

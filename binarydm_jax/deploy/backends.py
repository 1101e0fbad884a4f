"""What a loaded model computes its packed layers with: XLA on any device, or the native kernel on CPUs."""



from binarydm_jax import quant
from binarydm_jax.deploy import integer

BACKENDS = ("auto", "xla", "cpu", "float")


def prepare(file, backend):
  """(name of the back end, rule table for the model, variables) of a PackedFile.

  Args:
    file: PackedFile.
    backend: a name of BACKENDS; "float" gives kernels that are dequantized once and for all.
  Raises:
    ValueError: an unknown name.
  """
  if backend not in BACKENDS:
    raise ValueError(f"back end {backend!r} is not one of {', '.join(BACKENDS)}")
  table, shapes = file.description.table, file.description.shapes
  if backend == "float":
    return backend, quant.dequantized(table), quant.unpack(file.tensors, table, shapes)
  if backend == "auto":
    backend = "xla"
  packed = {path: quant.PackedLayer(rule, backend, integer.run) if rule.weights != "float" else rule
            for path, rule in table.items()}
  return backend, packed, quant.packed_collections(file.tensors, table)

"""One sampling step of a packed network as a StableHLO program, its weights inside as bits: see format.md."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from binarydm_jax.diffusion import guided, predict_eps, predict_x0, threshold
from binarydm_jax.files import write_atomically

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def sampling_step(model, clip=None, guidance=1.0, dynamic_threshold=0.0):
  """A function (x, t, t_next[, labels]) -> x at the noise level of t_next: one step of DDIM with eta 0.

  x is float32 [batch, h, w, c]; t and t_next are int32 scalars, t_next -1 stands for no noise at all; labels are
  int32 [batch], there only for a class-conditional network.

  Args:
    model: `runtime.Model`.
    clip, guidance, dynamic_threshold: as in `Model.sample`.
  """
  clip = model.first_stage is None if clip is None else clip
  predict = guided(model.model, guidance)
  schedule = model.schedule
  levels = np.append(schedule.alphas_cumprod, 1.0)  # the last at index -1

  def step(x, t, t_next, *labels):
    timesteps = jnp.broadcast_to(t, x.shape[:1])
    output = predict(model.variables, x, timesteps, labels[0] if labels else None, None)
    x0 = predict_x0(schedule, model.target, output, x, timesteps)
    if dynamic_threshold:
      x0 = threshold(x0, dynamic_threshold)
    elif clip:
      x0 = jnp.clip(x0, -1, 1)
    eps = predict_eps(schedule, x0, x, timesteps)
    signal, noise = (jnp.asarray(np.sqrt(part), jnp.float32)[t_next] for part in (levels, 1 - levels))
    return signal * x0 + noise * eps

  return step


def write_step(model, path, **options):
  """Writes `sampling_step` for any batch and for all of PLATFORMS, for `jax.export.deserialize`.

  Args:
    model: `runtime.Model` with the back end "xla": the native kernels are code of this package.
    path: of the file.
    **options: of `sampling_step`.
  Returns:
    Bytes written.
  Raises:
    ValueError: another back end.
  """
  if model.backend != "xla":
    raise ValueError(f"a model of the back end {model.backend!r} cannot leave this package: load it with 'xla'")
  (batch,) = jax_export.symbolic_shape("batch")
  scalar = jax.ShapeDtypeStruct((), jnp.int32)
  inputs = [jax.ShapeDtypeStruct((batch, *model.input_shape), jnp.float32), scalar, scalar]
  if model.model.num_classes:
    inputs.append(jax.ShapeDtypeStruct((batch,), jnp.int32))
  program = jax_export.export(jax.jit(sampling_step(model, **options)), platforms=PLATFORMS)(*inputs)
  content = program.serialize()
  write_atomically(path, content)
  return len(content)

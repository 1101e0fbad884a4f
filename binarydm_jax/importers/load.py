"""Published files and folders -> parameters: finds the weights, tells the layout, takes the part that is asked for."""

import json
import re
from pathlib import Path

import flax.traverse_util
import jax
import jax.numpy as jnp
from safetensors import SafetensorError, safe_open

from binarydm_jax.importers.diffusers_config import check_autoencoder_config, check_unet_config
from binarydm_jax.importers.mapping import CheckpointError, as_arrays, convert
from binarydm_jax.importers.names import autoencoder_entries, unet_entries
from binarydm_jax.importers.torch_file import read_torch

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
# Buffers of latent diffusion's noise schedule, which our config states (`stated_diffusion` compares the betas).
SCHEDULE = re.compile(
    r"(log_one_minus_|sqrt_|sqrt_one_minus_|sqrt_recip_|sqrt_recipm1_)?alphas_cumprod(_prev)?|betas|logvar|lvlb_weights"
    r"|posterior_(variance|log_variance_clipped|mean_coef1|mean_coef2)|scale_factor|model_ema\.(decay|num_updates)"
    r"|ddim_(sigmas|alphas(_prev)?|sqrt_one_minus_alphas)"
)
UNET, EMA, FIRST_STAGE, CLASS_EMBEDDER = (
    "model.diffusion_model.", "model_ema.", "first_stage_model.", "cond_stage_model.embedding.weight"
)


def find(path, folders):
  """(weights file, diffusers' config or None) at `path`: a file, a folder of one network, or of a whole pipeline."""
  path = Path(path).expanduser()
  if not path.exists():
    raise CheckpointError(f"{path} does not exist")
  if path.is_file():
    return path, _diffusers_config(path) if path.name in WEIGHTS else None
  for folder in (path, *(path / name for name in folders)):
    for name in WEIGHTS:
      if (folder / name).is_file():
        return folder / name, _diffusers_config(folder / name)
  raise CheckpointError(f"{path} holds no {WEIGHTS[0]}, neither itself nor in {' or '.join(folders)}/")


def _diffusers_config(path):
  """The config.json beside a weights file: what shapes do not show stands there."""
  try:
    config = json.loads((path.parent / "config.json").read_text())
  except (OSError, ValueError):
    config = None
  if not isinstance(config, dict) or "_class_name" not in config:
    raise CheckpointError(f"{path.parent} has no config.json of diffusers beside {path.name}; it is needed")
  return config


def read(path, names=None):
  """name -> numpy array or torch tensor; `names` alone, where they are there, if they are given."""
  if path.suffix == ".safetensors":
    try:
      with safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys() if names is None or name in names}
    except (SafetensorError, OSError, TypeError, ValueError, AttributeError) as error:  # the last: 8-bit floats
      raise CheckpointError(f"{path} is not a readable checkpoint ({error})") from None
  content = read_torch(path)
  named = lambda part: isinstance(part, dict) and all(isinstance(name, str) for name in part)
  if isinstance(content, (list, tuple)) and content and named(content[0]):
    # The DDIM authors' list: model, optimizer, epoch, step, averaged weights.
    averaged = content[4] if len(content) > 4 and named(content[4]) else {}
    content = {**content[0], **{_bare(name): value for name, value in averaged.items()}} if averaged else content[0]
    content = {_bare(name): value for name, value in content.items()}
  elif isinstance(content, dict):
    content = content.get("state_dict", content)
  if not named(content) or not all(hasattr(value, "shape") for value in content.values()):
    raise CheckpointError(f"{path} holds no state dict: a dictionary of tensors is needed")
  return content if names is None else {name: value for name, value in content.items() if name in names}


def _bare(name):
  return name.removeprefix("module.")


def _with_prefix(tensors, prefix):
  return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _averaged(raw, ema, path):
  """The EMA weights under the names of the raw ones; Lightning's averages are named without dots."""
  dotless = {name: f"{'diffusion_model.' + name}".replace(".", "") for name in raw}
  if set(dotless.values()) != set(ema):
    wrong = sorted(set(dotless.values()) ^ set(ema))
    raise CheckpointError(f"{path}: {len(wrong)} averaged weights do not belong to the raw ones, such as {wrong[0]}")
  return {name: ema[key] for name, key in dotless.items()}


def _unet_part(tensors, path):
  """(layout, the U-Net's tensors by names relative to it) of all that a file holds."""
  if any(name.startswith(UNET) for name in tensors):
    rest = {n: t for n, t in tensors.items() if not SCHEDULE.fullmatch(n) and not n.startswith(FIRST_STAGE)}
    raw, ema = _with_prefix(rest, UNET), _with_prefix(rest, EMA)
    known = (UNET, EMA)
    part = _averaged(raw, ema, path) if ema else raw
    # What belongs to neither stays, and is listed as left over.
    part |= {name: t for name, t in rest.items() if not name.startswith(known)}
    if CLASS_EMBEDDER in part:
      part["class_embedder.weight"] = part.pop(CLASS_EMBEDDER)
    return "compvis", part
  if "input_blocks.0.0.weight" in tensors:
    return "compvis", tensors
  if "temb.dense.0.weight" in tensors:
    return "ddpm", tensors
  if "time_embedding.linear_1.weight" in tensors:
    return "diffusers", _renamed(tensors)
  raise CheckpointError(
      f"{path} holds no U-Net of a known layout (latent diffusion, DDPM, diffusers); its first tensor is"
      f" {next(iter(tensors), 'none')!r}"
  )


def _renamed(tensors):
  """Attention of older diffusers files under its present names."""
  names = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
  pattern = re.compile(r"(attentions\.\d+)\.(query|key|value|proj_attn)\.")
  return {pattern.sub(lambda m: f"{m[1]}.{names[m[2]]}.", name): value for name, value in tensors.items()}


def _first_stage_part(tensors, path):
  """(layout, tensors) of a first stage, from its own file or from a whole latent diffusion model's."""
  part = _with_prefix(tensors, FIRST_STAGE) or tensors
  # The discriminator and the perceptual loss that it was trained with, and averages that latent diffusion does not use.
  part = {name: t for name, t in part.items() if not name.startswith(("loss.", EMA))}
  if "encoder.conv_in.weight" not in part:
    raise CheckpointError(f"{path} holds no first stage (no tensor encoder.conv_in.weight)")
  return ("diffusers", _renamed(part)) if any(".resnets." in name for name in part) else ("compvis", part)


def _shapes(model, *inputs, **kwargs):
  tree = jax.eval_shape(lambda x, kw: model.init(jax.random.key(0), *x, **kw), inputs, kwargs)["params"]
  return {path: leaf.shape for path, leaf in flax.traverse_util.flatten_dict(tree, sep="/").items()}


def load_unet(path, model):
  """Parameters of a published U-Net; averaged (EMA) weights where the file has them.

  Args:
    path: a CompVis or DDPM .ckpt, a .safetensors file, a diffusers folder of a network or of a pipeline.
    model: the UNet that they are for, with rules None; it takes as many channels as it gives.
  Returns:
    {"params" tree} as nested dicts of float32 numpy arrays.
  Raises:
    CheckpointError: unreadable file, pickled code, another architecture; every wrong tensor is named.
  """
  file, config = find(path, ("unet",))
  layout, tensors = _unet_part(read(file), file)
  _check_layout(layout, config, model, file)
  side = 2 ** len(model.channel_mult)
  context = {}
  if model.context_dim and not model.num_classes:
    context["context"] = jax.ShapeDtypeStruct((1, 1, model.context_dim), jnp.float32)
  shapes = _shapes(model, *model.abstract_inputs((side, side, model.out_channels)), **context)
  return convert(as_arrays(tensors, file), unet_entries(model, shapes, layout), shapes, file)


def load_autoencoder(path, model):
  """Parameters of a published first stage, and its scale factor.

  Args:
    path: a CompVis .ckpt (of the first stage, or of the latent diffusion model that holds it), a .safetensors file, a
      diffusers folder.
    model: the Autoencoder that they are for.
  Returns:
    (tree of float32 numpy arrays, the factor that the checkpoint multiplies latents by, or None).
  Raises:
    CheckpointError: as in `load_unet`.
  """
  file, config = find(path, ("vqvae", "vae"))
  content = read(file)
  layout, tensors = _first_stage_part(content, file)
  if layout == "diffusers" and not config:
    raise CheckpointError(f"{file} is a diffusers network without its config.json; give the folder that holds both")
  if config:
    check_autoencoder_config(config, model, file)
  side = 2 * model.factor
  shapes = _shapes(model, jax.ShapeDtypeStruct((1, side, side, model.image_channels), jnp.float32))
  params = convert(as_arrays(tensors, file), autoencoder_entries(model, shapes, layout), shapes, file)
  return params, _scale_factor(content, config, file)


def load_scale_factor(path):
  """The factor by which the latents of a published model were multiplied, or None if its file does not say.

  Raises:
    CheckpointError: unreadable file, or a factor that is not a positive number.
  """
  file, config = find(path, ("vqvae", "vae", "unet"))
  return _scale_factor(read(file), config, file)


def _scale_factor(content, config, file):
  # diffusers writes its default into every VQModel's configuration, though latent diffusion does not scale those.
  known = config.get("scaling_factor") if config and config["_class_name"] == "AutoencoderKL" else None
  factor = content.get("scale_factor", known)
  if factor is None:
    return None
  try:
    factor = float(factor)
  except (TypeError, ValueError, RuntimeError):
    factor = float("nan")
  if not 0 < factor < float("inf"):
    raise CheckpointError(f"{file} has a scale factor that is not a positive number")
  return factor


def _check_layout(layout, config, model, file):
  """What the tensors do not show: norms' epsilons, padding, the time embedding, heads.

  Raises:
    CheckpointError: the file's network computes something else than `model` would.
  """
  if layout == "diffusers":
    if not config:
      raise CheckpointError(f"{file} is a diffusers network without its config.json; give the folder that holds both")
    check_unet_config(config, model, file)
    return
  wanted = {"compvis": "ldm", "ddpm": "ddpm"}[layout]
  if model.layout != wanted:
    raise CheckpointError(f"{file} holds a network of the layout {wanted!r}, and model.layout is {model.layout!r}")
  extras = {name: getattr(model, name) for name in ("scale_shift", "resblock_updown", "context_dim", "num_classes")}
  given = [name for name, value in extras.items() if value]
  if layout == "ddpm" and (given or model.num_heads != 1 or model.num_head_channels):
    what = f"model.{given[0]}" if given else "several heads (set model.num_heads=1, model.num_head_channels=0)"
    raise CheckpointError(f"{file} holds a DDPM network, which has no {what}")

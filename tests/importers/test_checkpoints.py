"""Files of the published layouts: round trips bit for bit, EMA weights, and every wrong file as one clear error."""

import functools
import json
import os
import sys
import types

import diffusers
import flax.traverse_util
import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from binarydm_jax.importers import (
  CheckpointError,
  autoencoder_entries,
  load_autoencoder,
  load_scale_factor,
  load_unet,
  restore,
  unet_entries,
)
from binarydm_jax.models import Autoencoder, UNet

SMALL = UNet(3, 8, (1, 2), 1, (2,), num_heads=2, norm_groups=4)
UNETS = {
  "ldm": SMALL,
  "resampling blocks": SMALL.clone(scale_shift=True, resblock_updown=True),
  "class labels": SMALL.clone(num_classes=5),
  "cross-attention": SMALL.clone(num_classes=4, null_class=True, context_dim=6),
  "ddpm": SMALL.clone(layout="ddpm", num_heads=1),
}
VQ = Autoencoder("vq", 3, 8, (1, 2), 1, (2,), 3, 16, 4)
KL = Autoencoder("kl", 3, 8, (1, 2), 1, (), 4, 0, 4)


@functools.cache
def random_params(model, *inputs):
  """Flat: path -> random float32 array; the same ones to all who ask."""
  tree = jax.eval_shape(lambda *x: model.init(jax.random.key(0), *x), *inputs)["params"]
  rng = np.random.default_rng(0)
  flat = flax.traverse_util.flatten_dict(tree, sep="/")
  return {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in flat.items()}


def unet_params(model):
  return random_params(model, *model.abstract_inputs((8, 8, 3)))


def autoencoder_params(model):
  return random_params(model, jax.ShapeDtypeStruct((1, 4, 4, 3), np.float32))


def published(model, params, layout="compvis"):
  """The U-Net's tensors by their published names."""
  tree = flax.traverse_util.unflatten_dict(params, sep="/")
  return restore(tree, unet_entries(model, params, layout))


def assert_same(tree, params):
  flat = flax.traverse_util.flatten_dict(tree, sep="/")
  assert set(flat) == set(params)
  for path, array in params.items():
    np.testing.assert_array_equal(flat[path], array, err_msg=path)


def save_ldm(path, model, params, ema=None, **extra):
  """A latent diffusion checkpoint as Lightning writes it: callbacks, optimizer, schedule, first stage."""
  tensors = published(model, params)
  state = {"betas": torch.zeros(10), "sqrt_one_minus_alphas_cumprod": torch.zeros(10)}
  state["scale_factor"] = torch.tensor(0.5)
  if "class_embedder.weight" in tensors:
    state["cond_stage_model.embedding.weight"] = torch.tensor(tensors.pop("class_embedder.weight"))
  state |= {f"model.diffusion_model.{name}": torch.tensor(t) for name, t in tensors.items()}
  if ema is not None:
    averages = published(model, ema)
    state |= {"model_ema." + f"diffusion_model.{n}".replace(".", ""): torch.tensor(t) for n, t in averages.items()}
    state |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(3)}
  stage = flax.traverse_util.unflatten_dict(autoencoder_params(KL), sep="/")
  names = restore(stage, autoencoder_entries(KL, autoencoder_params(KL), "compvis"))
  state |= {f"first_stage_model.{name}": torch.tensor(t) for name, t in names.items()}
  module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
  module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
  module.Timer = type("Timer", (), {"__module__": module.__name__})
  modules = {name: types.ModuleType(name) for name in ("pytorch_lightning", "pytorch_lightning.callbacks")}
  modules[module.__name__] = module
  sys.modules.update(modules)
  try:
    content = {"epoch": 3, "global_step": 7, "state_dict": state, "optimizer_states": [{"state": {}}],
               "callbacks": {module.ModelCheckpoint: {"best": module.Timer()}, module.Timer: {}}, **extra}  # fmt: skip
    torch.save(content, path)
  finally:
    for name in modules:
      del sys.modules[name]
  return path


@pytest.mark.parametrize("name", UNETS)
def test_unet_round_trip(name, tmp_path):
  """Our tree -> the published layout -> our tree, bit for bit, through a Lightning checkpoint."""
  model = UNETS[name]
  params = unet_params(model)
  layout = "ddpm" if name == "ddpm" else "compvis"
  path = tmp_path / "model.ckpt"
  if layout == "ddpm":
    torch.save({n: torch.tensor(t) for n, t in published(model, params, layout).items()}, path)
  else:
    save_ldm(path, model, params)
  assert_same(load_unet(path, model), params)


@pytest.mark.parametrize("layout", ["compvis", "diffusers"])
@pytest.mark.parametrize("model", [VQ, KL], ids=["vq", "kl"])
def test_autoencoder_round_trip(model, layout, tmp_path):
  """The same for first stages; what they were trained with (a discriminator) is left out."""
  params = autoencoder_params(model)
  tensors = restore(flax.traverse_util.unflatten_dict(params, sep="/"), autoencoder_entries(model, params, layout))
  tensors["loss.discriminator.main.0.weight"] = np.zeros(3, np.float32)
  tensors["model_ema.encoderconv_inbias"] = np.zeros(3, np.float32)
  path = tmp_path / ("model.safetensors" if layout == "compvis" else "diffusion_pytorch_model.safetensors")
  save_file(tensors, path)
  if layout == "diffusers":
    with pytest.raises(CheckpointError, match="no config.json"):
      load_autoencoder(path, model)
    kind = {"vq": "VQModel", "kl": "AutoencoderKL"}[model.kind]
    (tmp_path / "config.json").write_text(
        json.dumps(dict(_class_name=kind, norm_num_groups=4, layers_per_block=1, scaling_factor=0.18215))
    )
  tree, factor = load_autoencoder(path, model)
  assert_same(tree, params)
  # diffusers writes a factor for codebooks too, which latent diffusion does not scale.
  assert factor == (0.18215 if layout == "diffusers" and model.kind == "kl" else None)


def test_names_of_latent_diffusion():
  """Names of the released LDM-4 (LSUN-Bedrooms) checkpoint, and their number."""
  model = UNet(3, 224, (1, 2, 3, 4), 2, (8, 4, 2), num_head_channels=32)
  shapes = jax.eval_shape(lambda *x: model.init(jax.random.key(0), *x), *model.abstract_inputs((64, 64, 3)))["params"]
  flat = flax.traverse_util.flatten_dict(shapes, sep="/")
  entries = {entry.ours: entry.theirs for entry in unet_entries(model, flat, "compvis")}
  assert entries["input_0/conv/kernel"] == ("input_blocks.0.0.weight",)
  assert entries["input_3/down/kernel"] == ("input_blocks.3.0.op.weight",)
  assert entries["input_4/res/skip/kernel"] == ("input_blocks.4.0.skip_connection.weight",)
  assert entries["input_4/attn/qkv/bias"] == ("input_blocks.4.1.qkv.bias",)
  assert entries["middle/res1/norm2/scale"] == ("middle_block.2.out_layers.0.weight",)
  assert entries["output_2/up/kernel"] == ("output_blocks.2.2.conv.weight",)
  assert entries["output_9/res/emb/kernel"] == ("output_blocks.9.0.emb_layers.1.weight",)
  assert entries["out_conv/bias"] == ("out.2.bias",)
  assert len(set(entries.values())) == len(entries) == len(flat)


def test_names_of_ddpm():
  """Names of the CIFAR-10 checkpoint of the DDPM ports."""
  model = UNet(3, 128, (1, 2, 2, 2), 2, (2,), layout="ddpm")
  shapes = jax.eval_shape(lambda *x: model.init(jax.random.key(0), *x), *model.abstract_inputs((32, 32, 3)))["params"]
  flat = flax.traverse_util.flatten_dict(shapes, sep="/")
  entries = {entry.ours: entry.theirs for entry in unet_entries(model, flat, "ddpm")}
  assert entries["input_3/down/kernel"] == ("down.0.downsample.conv.weight",)
  assert entries["input_5/attn/qkv/kernel"] == tuple(f"down.1.attn.1.{n}.weight" for n in "qkv")
  assert entries["middle/attn/proj/bias"] == ("mid.attn_1.proj_out.bias",)
  assert entries["output_2/up/kernel"] == ("up.3.upsample.conv.weight",)
  assert entries["output_11/res/skip/kernel"] == ("up.0.block.2.nin_shortcut.weight",)
  assert entries["time_embed_1/bias"] == ("temb.dense.1.bias",)


def test_averaged_weights_are_preferred(tmp_path):
  """A CompVis file with EMA weights gives those, by their names without dots."""
  raw = unet_params(SMALL)
  averaged = {path: value + 1 for path, value in raw.items()}
  assert_same(load_unet(save_ldm(tmp_path / "a.ckpt", SMALL, raw, averaged), SMALL), averaged)


def test_list_of_the_ddim_authors(tmp_path):
  """[model, optimizer, epoch, step, averages], from a data-parallel run: the averages are taken."""
  model = UNETS["ddpm"]
  raw = unet_params(model)
  tensors = {name: torch.tensor(t) for name, t in published(model, raw, "ddpm").items()}
  averages = {name: t + 1 for name, t in tensors.items()}
  states = [{f"module.{name}": t for name, t in tensors.items()}, {"state": {}}, 3, 7]
  torch.save(states, tmp_path / "raw.pth")
  torch.save([*states, averages], tmp_path / "ema.pth")
  assert_same(load_unet(tmp_path / "raw.pth", model), raw)
  assert_same(load_unet(tmp_path / "ema.pth", model), {path: value + 1 for path, value in raw.items()})


def test_what_training_leaves_beside_the_tensors(tmp_path):
  """Numpy scalars of metrics, buffers of samplers: neither is in the way, and a bad factor is refused."""
  params = unet_params(SMALL)
  path = save_ldm(tmp_path / "a.ckpt", SMALL, params, score=np.float64(0.5), history=np.arange(3))
  assert_same(load_unet(path, SMALL), params)
  content = torch.load(save_ldm(path, SMALL, params, callbacks={}), weights_only=True)
  content["state_dict"]["ddim_alphas_prev"] = torch.zeros(3)
  content["state_dict"]["scale_factor"] = torch.tensor(-1.0)
  torch.save(content, path)
  assert_same(load_unet(path, SMALL), params)
  with pytest.raises(CheckpointError, match="a scale factor that is not a positive number"):
    load_scale_factor(path)


def test_first_stage_inside_a_latent_diffusion_model(tmp_path):
  """Its weights and its scale factor."""
  path = save_ldm(tmp_path / "a.ckpt", SMALL, unet_params(SMALL))
  tree, factor = load_autoencoder(path, KL)
  assert_same(tree, autoencoder_params(KL))
  assert factor == 0.5


class Bomb:
  """Its unpickling would write a file."""

  def __init__(self, path):
    self.path = str(path)

  def __reduce__(self):
    return (open, (self.path, "w"))


class Command(Bomb):
  """Its unpickling would run a command."""

  def __reduce__(self):
    return (os.system, (f"touch '{self.path}'",))


def test_wrong_files(tmp_path):
  """Each is one line that names the file; nothing is executed."""
  params, executed = unet_params(SMALL), tmp_path / "executed"
  good = save_ldm(tmp_path / "good.ckpt", SMALL, params)

  def refused(path, *words, model=SMALL):
    with pytest.raises(CheckpointError) as error:
      load_unet(path, model)
    message = str(error.value)
    assert "\n" not in message and str(path) in message, message
    assert all(word in message for word in words), message

  refused(tmp_path / "nowhere.ckpt", "does not exist")
  cut = tmp_path / "cut.ckpt"
  cut.write_bytes(good.read_bytes()[:5000])
  refused(cut, "not a readable checkpoint")
  text = tmp_path / "text.safetensors"
  text.write_text("hello")
  refused(text, "not a readable checkpoint")
  bomb = save_ldm(tmp_path / "bomb.ckpt", SMALL, params, hyper_parameters=Bomb(executed))
  refused(bomb, "holds pickled code", "not run")
  refused(good, "another shape", "input_blocks.0.0.weight", model=SMALL.clone(model_channels=16))
  refused(good, "left over", "middle_block.1.qkv", model=SMALL.clone(context_dim=4, num_classes=3))
  refused(good, "78 missing", "input_blocks.2.0.emb_layers.1.bias", "and 70 more", model=SMALL.clone(num_res_blocks=2))
  port = tmp_path / "port.ckpt"
  torch.save({n: torch.tensor(t) for n, t in published(UNETS["ddpm"], params, "ddpm").items()}, port)
  refused(port, "layout 'ddpm'", "model.layout is 'ldm'")
  refused(port, "no several heads (set model.num_heads=1", model=SMALL.clone(layout="ddpm"))
  refused(port, "no model.context_dim", model=UNETS["cross-attention"].clone(layout="ddpm"))
  refused(good, "layout 'ldm'", model=UNETS["ddpm"])
  system = save_ldm(tmp_path / "system.ckpt", SMALL, params, hyper_parameters=Command(executed))
  refused(system, "pickled code (posix.system)")
  assert not executed.exists()
  odd = tmp_path / "odd.ckpt"
  torch.save({"weights": {"a": 1}}, odd)
  refused(odd, "no state dict")
  torch.save({"a": torch.zeros(2)}, odd)
  refused(odd, "no U-Net of a known layout")
  broken = {path: np.full_like(value, np.nan) if "out_conv" in path else value for path, value in params.items()}
  refused(save_ldm(tmp_path / "nan.ckpt", SMALL, broken), "not finite", "out.2.weight")
  refused(tmp_path, "holds no diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("name, tensor", [
    ("repeated", lambda t: torch.zeros(1, dtype=torch.float16).expand(2**40)), ("sparse", lambda t: t.to_sparse()),
    ("without data", lambda t: t.to("meta")), ("of no dimension", lambda t: torch.tensor(1.0)),
])
def test_tensors_that_are_no_arrays(tmp_path, name, tensor):
  """What a file may claim to hold: refused by the tensor's name, and nothing large is made of it."""
  path = save_ldm(tmp_path / "a.ckpt", SMALL, unet_params(SMALL), callbacks={})
  content = torch.load(path, weights_only=True)
  key = next(key for key in content["state_dict"] if key.endswith("qkv.weight"))
  content["state_dict"][key] = tensor(content["state_dict"][key])
  torch.save(content, path)
  with pytest.raises(CheckpointError, match=r"qkv\.weight") as error:
    load_unet(path, SMALL)
  assert "\n" not in str(error.value)


def test_names_that_are_no_text(tmp_path):
  for content in ({3: torch.zeros(2)}, [{3: torch.zeros(2)}, {}, 0, 0, {}]):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="holds no state dict"):
      load_unet(tmp_path / "a.pth", SMALL)


def test_another_architecture_with_the_same_shapes(tmp_path):
  """diffusers' config.json: a DDPM network does not pass for a latent diffusion network, though all tensors fit."""
  diffusers.UNet2DModel(
      sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, norm_num_groups=4, block_out_channels=(8, 16),
      down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, attention_head_dim=None,
      flip_sin_to_cos=False, freq_shift=1, downsample_padding=0, norm_eps=1e-6,
  ).save_pretrained(tmp_path)
  model = UNet(3, 8, (1, 2), 1, (), norm_groups=4)
  with pytest.raises(CheckpointError, match="flip_sin_to_cos is False, not True.*norm_eps"):
    load_unet(tmp_path, model)
  load_unet(tmp_path, model.clone(layout="ddpm"))
  with pytest.raises(CheckpointError, match="flip_sin_to_cos"):
    load_unet(tmp_path / "diffusion_pytorch_model.safetensors", model)
  with pytest.raises(CheckpointError, match="set model.num_head_channels, not num_heads"):
    load_unet(tmp_path, model.clone(layout="ddpm", num_heads=2))


def test_classes_of_diffusers(tmp_path):
  """A class that is added to the time embedding is no class to attend to; one made of a timestep is none at all."""
  small = dict(
      sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, norm_num_groups=4, block_out_channels=(8, 16),
      attention_head_dim=None, num_class_embeds=5,
  )  # fmt: skip
  net = diffusers.UNet2DModel(**small, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
  net.save_pretrained(tmp_path)
  model = UNet(3, 8, (1, 2), 1, (), norm_groups=4, num_classes=5)
  embedding = load_unet(tmp_path, model)["label_embed"]["embedding"]
  np.testing.assert_array_equal(embedding, net.class_embedding.weight.detach())
  with pytest.raises(CheckpointError, match="adds a class to the time embedding, this network attends to it"):
    load_unet(tmp_path, model.clone(context_dim=32))
  config = json.loads((tmp_path / "config.json").read_text())
  (tmp_path / "config.json").write_text(json.dumps({**config, "class_embed_type": "timestep"}))
  with pytest.raises(CheckpointError, match="class_embed_type is 'timestep', not None"):
    load_unet(tmp_path, model)

"""A published file that states its diffusion is compared with the config; one that says nothing passes."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from binarydm_jax.diffusion import make_schedule
from binarydm_jax.importers import CheckpointError, check_diffusion

LDM = make_schedule("scaled_linear", 1000, 0.0015, 0.0195)
DDPM = make_schedule("linear", 1000, 1e-4, 0.02)


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_betas_of_a_file(suffix, tmp_path):
  """Latent diffusion's buffer, in float32; another end, another curve, another number; none at all."""
  path = tmp_path / f"model.{suffix}"

  def save(tensors):
    if suffix == "ckpt":
      torch.save({"state_dict": {name: torch.tensor(value) for name, value in tensors.items()}}, path)
    else:
      save_file(tensors, path)

  save({"betas": LDM.betas.astype(np.float32), "x": np.zeros(3, np.float32)})
  check_diffusion(path, LDM, "eps")
  for other, told in (
    (make_schedule("scaled_linear", 1000, 0.0015, 0.0155), "betas from 0.0015 to 0.0195, and .* from 0.0015 to 0.0155"),
    (make_schedule("linear", 1000, 0.0015, 0.0195), r"\(another curve between them\); latent diffusion's 'linear'"),
    (make_schedule("scaled_linear", 100, 0.0015, 0.0195), "1000 timesteps .* give 100 timesteps"),
  ):
    with pytest.raises(CheckpointError, match=told) as caught:
      check_diffusion(path, other, "eps")
    assert "\n" not in str(caught.value)
  save({"betas": np.asarray(torch.tensor(LDM.betas).bfloat16().float())})  # stored with three digits
  check_diffusion(path, LDM, "eps")
  save({"x": np.zeros(3, np.float32)})
  check_diffusion(path, DDPM, "v")


@pytest.mark.parametrize("place", ["scheduler", "unet", ""])
def test_scheduler_of_a_pipeline(place, tmp_path):
  """In its folder of a pipeline, or beside the network; diffusers' names and defaults."""
  network = tmp_path / ("unet" if place else "")
  for folder in (network, tmp_path / place):
    folder.mkdir(exist_ok=True)
  save_file({"x": np.zeros(3, np.float32)}, network / "diffusion_pytorch_model.safetensors")
  (network / "config.json").write_text('{"_class_name": "UNet2DModel"}')
  check_diffusion(tmp_path, LDM, "v")  # no scheduler
  stated = tmp_path / place / "scheduler_config.json"
  write = lambda **fields: stated.write_text(json.dumps(fields))
  write()
  check_diffusion(tmp_path, DDPM, "eps")
  write(beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195, prediction_type="v_prediction")
  check_diffusion(tmp_path, LDM, "v")
  with pytest.raises(CheckpointError, match="predicts 'v' by its scheduler_config.json, and diffusion.target is 'eps'"):
    check_diffusion(tmp_path, LDM, "eps")
  with pytest.raises(CheckpointError, match="betas from 0.0015 to 0.0195, and .* from 0.0001 to 0.02"):
    check_diffusion(tmp_path, DDPM, "v")
  write(beta_schedule="squaredcos_cap_v2")
  check_diffusion(tmp_path, make_schedule("cosine"), "eps")
  write(trained_betas=[0.1, 0.2])
  with pytest.raises(CheckpointError, match="trained for 2 timesteps"):
    check_diffusion(tmp_path, DDPM, "eps")
  write(beta_schedule="a later invention", prediction_type="another")
  check_diffusion(tmp_path, DDPM, "eps")  # said in words that nobody here knows
  stated.write_text("[")
  with pytest.raises(CheckpointError, match="scheduler_config.json cannot be read"):
    check_diffusion(tmp_path, DDPM, "eps")

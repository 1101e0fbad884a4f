"""PyTorch in float32, to compare with: one convolution, one U-Net by diffusers. Random weights; only time counts."""

import numpy as np
import torch

from binarydm_jax.command_line import cpu_count


def use_all_cores():
  """Threads that PyTorch computes with from now on: one a core that this process may use."""
  torch.set_num_threads(cpu_count())
  return torch.get_num_threads()


def convolutions(x, kernel, bias, stride, padding):
  """name -> function that convolves in float32, for the two memory layouts of PyTorch.

  Args:
    x: numpy [batch, h, w, cin]; kernel: HWIO; bias: [cout].
    stride: of both axes; padding: ((top, bottom), (left, right)), of which PyTorch takes the first of each.
  """
  (top, _), (left, _) = padding
  x, kernel = torch.tensor(np.moveaxis(x, 3, 1)), torch.tensor(np.transpose(kernel, (3, 2, 0, 1)))
  bias = torch.tensor(bias)

  def make(layout):
    operands = [array.contiguous(memory_format=layout) for array in (x, kernel)]

    def run():
      with torch.inference_mode():
        return torch.nn.functional.conv2d(*operands, bias, stride, (top, left)).numpy()

    return run

  return {"torch_nchw": make(torch.contiguous_format), "torch_nhwc": make(torch.channels_last)}


def unet(model, input_shape, params):
  """A function () -> prediction of diffusers' UNet2DModel of the same shape, batch 1; or None where it has none.

  Args:
    model: UNet.
    input_shape: (h, w, c).
    params: number of parameters, which must agree.
  """
  try:
    import diffusers
  except ImportError:
    return None
  if model.num_classes or model.context_dim or model.resblock_updown or model.scale_shift:
    return None
  if model.num_heads > 1 and not model.num_head_channels and len(set(model.channel_mult)) > 1:
    return None  # as many heads at every width, where diffusers has as many channels a head
  ldm = model.layout == "ldm"
  names = ["AttnDownBlock2D" if 2**level in model.attention_resolutions else "DownBlock2D"
           for level in range(len(model.channel_mult))]
  heads = model.num_head_channels or (model.model_channels // model.num_heads if model.num_heads > 1 else None)
  net = diffusers.UNet2DModel(
      sample_size=input_shape[0], in_channels=input_shape[2], out_channels=model.out_channels,
      layers_per_block=model.num_res_blocks, norm_num_groups=model.norm_groups,
      block_out_channels=tuple(mult * model.model_channels for mult in model.channel_mult),
      down_block_types=tuple(names), up_block_types=tuple(name.replace("Down", "Up") for name in names[::-1]),
      flip_sin_to_cos=ldm, freq_shift=0 if ldm else 1, downsample_padding=1 if ldm else 0,
      norm_eps=1e-5 if ldm else 1e-6, attention_head_dim=heads,
  ).eval()  # fmt: skip
  if sum(value.numel() for value in net.parameters()) != params:
    return None
  x, t = torch.randn(1, input_shape[2], *input_shape[:2]), torch.tensor([500])

  def run():
    with torch.inference_mode():
      return net(x, t).sample.numpy()

  return run

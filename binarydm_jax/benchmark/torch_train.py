"""The training step in PyTorch: teacher, quantized student, gradients, AdamW, averages."""

import torch
from torch.nn import functional

from binarydm_jax.benchmark.torch_unet import TorchUNet, load

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class TorchStep:
  """One step of quantization-aware training with distillation.

  All layers are quantized from the start: what progressive initialisation does in its first steps is not repeated.

  Args:
    told: from `torch_problem.describe`.
    memory_format: "contiguous" (NCHW) or "channels_last".
  """

  def __init__(self, told, memory_format="contiguous"):
    self.format = FORMATS[memory_format]

    def make(rules, parameters):
      network = TorchUNet(told["network"], rules)
      load(network, parameters)
      return network.to(memory_format=self.format)

    self.told = told
    self.student = make(told["rules"], told["student"])
    self.teacher = make(None, told["teacher"]) if told["teacher"] is not None else None
    # As 1x1 convolutions.
    self.projections = [torch.from_numpy(p.T.copy())[:, :, None, None] for p in told["projections"]]
    self.alphas_cumprod = torch.from_numpy(told["alphas_cumprod"]).float()
    kernels = [p for name, p in self.student.named_parameters() if name.endswith("weight") and p.dim() > 1]
    taken = {id(p) for p in kernels}
    others = [p for p in self.student.parameters() if id(p) not in taken]
    self.optimizer = torch.optim.AdamW(
        [dict(params=kernels, weight_decay=told["weight_decay"]), dict(params=others, weight_decay=0.0)],
        lr=told["learning_rate"], fused=True,
    )  # fmt: skip
    self.parameters = kernels + others
    self.average = [p.detach().clone() for p in self.parameters]
    batch, height, width, channels = told["image_shape"]
    self.images = torch.randn(batch, channels, height, width).contiguous(memory_format=self.format)

  def losses(self, x_t, timesteps, target):
    """(total, simple, lrm) of noisy images [batch, c, h, w] and the wanted prediction."""
    prediction, features = self.student(x_t, timesteps)
    simple = functional.mse_loss(prediction, target)
    if self.teacher is None:
      return simple, simple, torch.zeros(())
    with torch.no_grad():
      _, targets = self.teacher(x_t, timesteps)
    terms = []
    for i, (own, wanted) in enumerate(zip(features, targets)):
      difference = own - wanted
      if self.projections:
        difference = functional.conv2d(difference, self.projections[i])
      terms.append(difference.square().mean())
    lrm = sum(terms) / len(terms)
    return simple + self.told["lrm_weight"] * lrm, simple, lrm

  def update(self, x_t, timesteps, target):
    """Losses, gradients, AdamW and averages; returns the loss."""
    self.optimizer.zero_grad()
    loss, _, _ = self.losses(x_t, timesteps, target)
    loss.backward()
    if self.told["clip_norm"]:
      torch.nn.utils.clip_grad_norm_(self.parameters, self.told["clip_norm"])
    self.optimizer.step()
    with torch.no_grad():
      torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - self.told["ema_decay"])
    return loss.item()

  def __call__(self):
    """A step on fresh noise; returns the loss."""
    timesteps = torch.randint(0, len(self.alphas_cumprod), (len(self.images),))
    noise = torch.randn_like(self.images)
    kept = self.alphas_cumprod[timesteps].reshape(-1, 1, 1, 1)
    return self.update(kept.sqrt() * self.images + (1 - kept).sqrt() * noise, timesteps, noise)

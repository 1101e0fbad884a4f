"""Shortened chains: which timesteps a sampler visits, and the noise level at which each step ends."""

import numpy as np

# Of the image, in what a chain begins with beyond what the last timestep holds.
MOST_HELD = 0.1
SPACINGS = ("ldm", "leading", "linspace", "trailing", "quadratic", "logsnr")


def sampling_timesteps(schedule, steps, spacing="ldm"):
  """The timesteps of a shortened chain and the alphas_cumprod that each step goes to.

  Args:
    schedule: Schedule of T timesteps.
    steps: their number, at most T.
    spacing: with c = T // steps,
      "ldm": 1 + c i, ending at alphas_cumprod[0] (latent diffusion);
      "leading": c i, ending at 1;
      "linspace": evenly from 0 to T - 1, both included, ending at 1 (ADM);
      "trailing": T - 1, T - 1 - T / steps, ..., ending at 1;
      "quadratic": floor(c i^2) from 0 to 0.8 T, ending at 1 (the released code of Song et al. 2021, for CIFAR-10);
      "logsnr": the timesteps nearest to even steps in log(a / s), from T - 1 to 0, where the chain ends, that is at
      alphas_cumprod[0] (Lu et al. 2022, arXiv 2206.00927).
      The last two repeat timesteps if there are many: a step from a timestep to itself changes nothing.
  Returns:
    int32 [steps] in descending order; float64 [steps], alphas_cumprod of the step's end.
  Raises:
    ValueError: unknown spacing, steps out of range, or whole strides that leave out so much that the chain would begin
      where the image still shows.
  """
  total, abar = schedule.num_timesteps, schedule.alphas_cumprod
  if spacing not in SPACINGS:
    raise ValueError(f"sample.spacing {spacing!r} is not one of {', '.join(SPACINGS)}")
  least = 2 if spacing == "quadratic" else 1  # a single one would be timestep 0: noise taken for an image
  most = total - 1 if spacing in ("ldm", "logsnr") else total
  if not least <= steps <= most:
    raise ValueError(f"sample.steps {steps} is not in {least} .. {most}, the range of {spacing!r} spacing over {total}")
  i = np.arange(steps)
  if spacing == "ldm":
    timesteps = 1 + total // steps * i
  elif spacing == "leading":
    timesteps = total // steps * i
  elif spacing == "linspace":
    timesteps = np.round(np.linspace(0, total - 1, steps)) if steps > 1 else np.array([total - 1])
  elif spacing == "trailing":
    timesteps = np.round(total - total / steps * i)[::-1] - 1
  elif spacing == "quadratic":
    timesteps = np.floor(np.linspace(0, np.sqrt(0.8 * total), steps) ** 2)
  else:
    log_ratio = np.log(abar / (1 - abar)) / 2
    wanted = np.linspace(log_ratio[0], log_ratio[-1], steps + 1)[1:]
    timesteps = np.abs(log_ratio[:, None] - wanted).argmin(0)
  timesteps = timesteps.astype(np.int32)
  # Where c = T // steps leaves much out, the chain begins far below T, and takes noise for what still holds an image.
  held = np.sqrt(abar[timesteps[-1]]) - np.sqrt(abar[-1])
  skipped = steps == 1 or total - timesteps[-1] > 2 * (total // steps)
  if spacing in ("ldm", "leading") and skipped and held > MOST_HELD:
    number = "more" if steps == 1 else f"a number that divides {total}"
    raise ValueError(
        f"sample.steps {steps} in {spacing!r} spacing begins at timestep {timesteps[-1]} of {total}, where noise still"
        f" holds {held:.0%} of the image: take {number}, or sample.spacing='trailing'"
    )
  ends = np.concatenate([[abar[0] if spacing in ("ldm", "logsnr") else 1.0], abar[timesteps[:-1]]])
  return timesteps[::-1].copy(), ends[::-1].copy()


def solver_timesteps(schedule, steps, spacing, name):
  """`sampling_timesteps` for a solver that compares one step with another: two or more, none of length zero.

  Args:
    name: of the sampler, for the messages.
  Raises:
    ValueError: also where there is only one step, or timesteps are repeated.
  """
  if steps == 1:
    raise ValueError(f"sample.steps is 1; {name} needs at least 2 (one step is ddim's)")
  timesteps, ends = sampling_timesteps(schedule, steps, spacing)
  if np.any(ends <= schedule.alphas_cumprod[timesteps]):
    raise ValueError(
        f"sample.steps {steps} repeats timesteps in {spacing!r} spacing, which {name} cannot use; take fewer steps or"
        " another sample.spacing"
    )
  return timesteps, ends

"""Samplers: the timesteps as literals, plain loops written from the papers, and distributions known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from binarydm_jax.diffusion import (
  Schedule,
  ddim,
  ddpm,
  dpm_solver_2m,
  dpm_solver_2s,
  make_schedule,
  plms,
  sample_keys,
  sampling_timesteps,
  solver_timesteps,
)

LDM = make_schedule("scaled_linear", 1000, 0.0015, 0.0195)
SHORT = make_schedule("linear", 20, 1e-2, 0.3)
KEY = jax.random.key(3)


def draw(key, index, step, shape):
  """The noise that sample `index` of a run receives at `step` (0: the start)."""
  return np.asarray(jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, index), step), shape), np.float64)


def point_mass(schedule, value, target):
  """The exact denoiser of data that is always `value`, in float32 as a network would be."""
  signal = jnp.asarray(np.sqrt(schedule.alphas_cumprod), jnp.float32)
  noise = jnp.asarray(np.sqrt(1 - schedule.alphas_cumprod), jnp.float32)

  def denoise(x, timesteps):
    a, s = signal[timesteps][:, None], noise[timesteps][:, None]
    eps = (x - a * value) / s
    return {"eps": eps, "x0": jnp.full_like(x, value), "v": a * eps - s * value}[target]

  return denoise


# --- timesteps --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing, steps, expected", [
    ("ldm", 100, list(range(991, 0, -10))),
    ("ldm", 3, [667, 334, 1]),
    ("ldm", 999, list(range(999, 0, -1))),
    ("leading", 100, list(range(990, -1, -10))),
    ("leading", 3, [666, 333, 0]),
    ("linspace", 4, [999, 666, 333, 0]),
    ("linspace", 1, [999]),
    ("trailing", 4, [999, 749, 499, 249]),
    ("trailing", 3, [999, 666, 332]),
    ("trailing", 1000, list(range(999, -1, -1))),
  # floor(800 (i / 4)^2) and floor(800 (i / 9)^2), Song et al.'s "quad".
  ("quadratic", 5, [800, 450, 200, 50, 0]),
  ("quadratic", 10, [800, 632, 483, 355, 246, 158, 88, 39, 9, 0]),
])
def test_timesteps(spacing, steps, expected):
  """Literals for 1000 timesteps, and that each step goes to the level of the next one."""
  timesteps, ends = sampling_timesteps(LDM, steps, spacing)
  assert timesteps.dtype == np.int32 and timesteps.tolist() == expected
  abar = np.cumprod(1 - LDM.betas)
  np.testing.assert_array_equal(ends[:-1], abar[expected[1:]])
  assert ends[-1] == (abar[0] if spacing == "ldm" else 1.0)


@pytest.mark.parametrize("spacing", ["ldm", "leading"])
def test_chains_that_would_begin_too_low(spacing):
  """600 of 1000 steps by whole strides would begin at timestep 600; numbers that leave little out are taken."""
  with pytest.raises(ValueError, match=f"sample.steps 600 in '{spacing}' spacing begins at timestep (600|599) of 1000"):
    sampling_timesteps(LDM, 600, spacing)
  for steps in (2, 3, 20, 50, 64, 100, 150, 250, 500):
    sampling_timesteps(LDM, steps, spacing)
  assert sampling_timesteps(LDM, 600, "trailing")[0][0] == 999


def test_logsnr_timesteps():
  """Even in log(a / s) as far as whole timesteps allow, from the last timestep to the first, where the chain ends."""
  schedule = Schedule(np.full(1000, 1e-2))
  timesteps, ends = sampling_timesteps(schedule, 10, "logsnr")
  assert timesteps[0] == 999 and ends[-1] == schedule.alphas_cumprod[0]
  log_ratio = np.log(schedule.alphas_cumprod / (1 - schedule.alphas_cumprod)) / 2
  even = np.linspace(log_ratio[999], log_ratio[0], 11)[:10]
  for t, wanted in zip(timesteps, even):
    near = log_ratio[max(t - 1, 0) : t + 2]
    assert abs(log_ratio[t] - wanted) == np.abs(near - wanted).min()


def test_repeated_timesteps():
  """Short quadratic steps repeat timesteps, as the released code has it: DDIM stands still, solvers refuse."""
  timesteps, ends = sampling_timesteps(SHORT, 10, "quadratic")
  assert timesteps.tolist() == [16, 12, 9, 7, 4, 3, 1, 0, 0, 0]
  assert ends[-3] == ends[-2] == SHORT.alphas_cumprod[0] and ends[-1] == 1
  keys = sample_keys(KEY, 0, 4)
  out = ddim(point_mass(SHORT, 0.4, "eps"), keys, (5,), SHORT, steps=10, eta=1.0, spacing="quadratic")
  np.testing.assert_allclose(out, 0.4, atol=2e-5)
  for spacing, steps in (("quadratic", 10), ("logsnr", 19)):
    with pytest.raises(ValueError, match=f"sample.steps {steps} repeats timesteps in '{spacing}' spacing, which plms"):
      plms(network, keys, (5,), SHORT, steps=steps, spacing=spacing)
  with pytest.raises(ValueError, match=r"sample.steps is 1; dpm_solver\+\+_2m needs at least 2"):
    solver_timesteps(SHORT, 1, "ldm", "dpm_solver++_2m")


@pytest.mark.parametrize("spacing, steps, least, most", [
  ("ldm", 0, 1, 999), ("ldm", 1000, 1, 999), ("leading", 1001, 1, 1000), ("linspace", -1, 1, 1000),
  ("trailing", 1001, 1, 1000), ("quadratic", 1, 2, 1000), ("logsnr", 1000, 1, 999),
])
def test_steps_out_of_range(spacing, steps, least, most):
  with pytest.raises(ValueError, match=rf"sample.steps {steps} is not in {least} .. {most}"):
    sampling_timesteps(LDM, steps, spacing)


def test_unknown_spacing():
  with pytest.raises(ValueError, match="sample.spacing 'karras' is not one of ldm, leading"):
    sampling_timesteps(LDM, 10, "karras")


# --- against the papers -----------------------------------------------------------------------------------------------


def network(x, timesteps):
  """A smooth function of x and t for both jax and numpy."""
  return (jnp if isinstance(x, jax.Array) else np).tanh(0.7 * x) * (0.3 + timesteps[:, None] / 40)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_is_equation_12(eta):
  """A plain loop from Song et al. 2021, Eq. 12 and 16 (in their symbols), in float64, given the same noise."""
  n, shape, abar = 3, (4,), np.cumprod(1 - SHORT.betas)
  x = np.stack([draw(KEY, 5 + i, 0, shape) for i in range(n)])
  chain = [1, 5, 9, 13, 17]
  for number, position in enumerate(reversed(range(5)), start=1):
    t, alpha = chain[position], abar[chain[position]]
    previous = abar[chain[position - 1]] if position else abar[0]
    eps = network(x, np.full(n, t))
    sigma = eta * np.sqrt((1 - previous) / (1 - alpha)) * np.sqrt(1 - alpha / previous)
    x0 = (x - np.sqrt(1 - alpha) * eps) / np.sqrt(alpha)
    noise = np.stack([draw(KEY, 5 + i, number, shape) for i in range(n)])
    x = np.sqrt(previous) * x0 + np.sqrt(1 - previous - sigma**2) * eps + sigma * noise
  got = ddim(network, sample_keys(KEY, 5, n), shape, SHORT, steps=5, eta=eta)
  np.testing.assert_allclose(got, x, rtol=2e-5, atol=2e-5)


def test_ddpm_is_algorithm_2():
  """A plain loop from Ho et al. 2020, Algorithm 2 with the posterior variance (Eq. 7), over all timesteps."""
  n, shape, betas = 3, (4,), SHORT.betas
  abar = np.cumprod(1 - betas)
  x = np.stack([draw(KEY, i, 0, shape) for i in range(n)])
  for number, t in enumerate(reversed(range(20)), start=1):
    eps = network(x, np.full(n, t))
    mean = (x - betas[t] / np.sqrt(1 - abar[t]) * eps) / np.sqrt(1 - betas[t])
    before = abar[t - 1] if t else 1.0
    noise = np.stack([draw(KEY, i, number, shape) for i in range(n)])
    x = mean + np.sqrt((1 - before) / (1 - abar[t]) * betas[t]) * noise
  got = ddpm(network, sample_keys(KEY, 0, n), shape, SHORT)
  np.testing.assert_allclose(got, x, rtol=5e-5, atol=5e-5)


def test_ddim_with_eta_1_is_ddpm():
  """On the same chain DDIM with eta = 1 is ancestral sampling (Song et al., section 4.1)."""
  keys = sample_keys(KEY, 0, 4)
  a = ddim(network, keys, (3,), SHORT, steps=20, eta=1.0, spacing="linspace")
  np.testing.assert_allclose(a, ddpm(network, keys, (3,), SHORT), rtol=1e-4, atol=1e-4)


# --- distributions that are known -------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["eps", "x0", "v"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_point_mass(target, eta):
  """The exact denoiser of a constant leads every start to the constant."""
  out = ddim(point_mass(SHORT, 0.4, target), sample_keys(KEY, 0, 8), (5,), SHORT, target, 10, eta, spacing="leading")
  np.testing.assert_allclose(out, 0.4, atol=2e-5)


@pytest.mark.parametrize("target", ["eps", "x0", "v"])
def test_point_mass_ddpm(target):
  out = ddpm(point_mass(SHORT, -0.7, target), sample_keys(KEY, 0, 8), (5,), SHORT, target)
  np.testing.assert_allclose(out, -0.7, atol=2e-5)


def test_ldm_spacing_ends_at_the_first_noise_level():
  """Latent diffusion's chain stops at abar[0]: of a constant c, sqrt(abar[0]) c + sqrt(1 - abar[0]) noise is left."""
  schedule = Schedule(np.array([0.36, 0.2, 0.01, 0.01]))
  out = ddim(point_mass(schedule, 0.5, "eps"), sample_keys(KEY, 0, 2), (1,), schedule, steps=1)
  start = np.stack([draw(KEY, i, 0, (1,)) for i in range(2)])
  abar = 0.64 * 0.8
  eps = (start - np.sqrt(abar) * 0.5) / np.sqrt(1 - abar)
  np.testing.assert_allclose(out, 0.8 * 0.5 + 0.6 * eps, rtol=1e-5)


@pytest.mark.parametrize("sampler, eta", [("ddim", 0.0), ("ddim", 1.0), ("ddpm", None)])
def test_gaussian_data(sampler, eta):
  """For data N(0.5, 0.3^2) the best eps is s (x - a mu) / (a^2 var + s^2): samples have that mean and deviation."""
  schedule = make_schedule("linear", 500, 1e-4, 4e-2)
  mu, var = 0.5, 0.09
  abar = jnp.asarray(schedule.alphas_cumprod, jnp.float32)

  def optimal(x, timesteps):
    a = abar[timesteps][:, None]
    return jnp.sqrt(1 - a) * (x - jnp.sqrt(a) * mu) / (a * var + 1 - a)

  keys = sample_keys(KEY, 0, 4000)
  if sampler == "ddim":
    out = jax.jit(lambda k: ddim(optimal, k, (5,), schedule, steps=250, eta=eta, spacing="leading"))(keys)
  else:
    out = jax.jit(lambda k: ddpm(optimal, k, (5,), schedule))(keys)
  assert float(jnp.mean(out)) == pytest.approx(mu, abs=0.01)  # standard error 0.0021
  assert float(jnp.std(out)) == pytest.approx(0.3, abs=0.02)  # the posterior variance makes finite chains narrower


SOLVERS = (plms, dpm_solver_2m, dpm_solver_2s)


@pytest.mark.parametrize("target", ["eps", "x0", "v"])
@pytest.mark.parametrize("sampler", SOLVERS)
def test_point_mass_solvers(sampler, target):
  """Where the noise, or x0, is the same at all timesteps every mixture of predictions is exact."""
  for steps in (2, 3, 10):
    out = sampler(point_mass(SHORT, 0.4, target), sample_keys(KEY, 0, 8), (5,), SHORT, target, steps, spacing="leading")
    np.testing.assert_allclose(out, 0.4, atol=2e-5)


@pytest.mark.parametrize("sampler, calls", [(plms, 7), (dpm_solver_2m, 6), (dpm_solver_2s, 6)])
def test_runs_of_the_network(sampler, calls):
  """What the docstrings say of `steps`; the network itself is traced once."""
  traced, run = [], []

  def denoise(x, timesteps):
    traced.append(1)
    jax.debug.callback(lambda t: run.append(int(t[0])), timesteps)
    return network(x, timesteps)

  jax.block_until_ready(sampler(denoise, sample_keys(KEY, 0, 2), (3,), SHORT, steps=6))
  jax.effects_barrier()
  assert len(run) == calls and sorted(set(run), reverse=True) == [16, 13, 10, 7, 4, 1]
  assert len(traced) <= 2  # the scan may trace its body again for its shapes


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", [ddim, ddpm, *SOLVERS])
def test_clip(sampler):
  """Data at 3 end at 3, and at exactly 1 when the predicted x0 is clipped."""
  denoise, keys = point_mass(SHORT, 3.0, "x0"), sample_keys(KEY, 0, 2)
  free = sampler(denoise, keys, (4,), SHORT, "x0", steps=10, spacing="linspace")
  np.testing.assert_allclose(free, 3.0, atol=1e-4)
  clipped = sampler(denoise, keys, (4,), SHORT, "x0", steps=10, spacing="linspace", clip=True)
  np.testing.assert_allclose(clipped, 1.0, atol=1e-5)


def test_clipped_ddim_uses_the_noise_of_the_clipped_x0():
  """One step to abar[0] by hand: the direction is (x - a clip(x0)) / s."""
  schedule = Schedule(np.array([0.36, 0.75]))  # from abar 0.16 to 0.64
  x = draw(KEY, 0, 0, (1,))
  out = ddim(lambda x, t: jnp.full_like(x, 5.0), sample_keys(KEY, 0, 1), (1,), schedule, "x0", 1, clip=True)
  np.testing.assert_allclose(out[0], 0.8 * 1 + 0.6 * (x - 0.4) / np.sqrt(0.84), rtol=1e-5)


def test_eta():
  """eta = 0 is a function of the start alone; eta > 0 moves away from it."""
  keys = sample_keys(KEY, 0, 4)
  runs = [np.asarray(ddim(network, keys, (3,), SHORT, steps=5, eta=eta)) for eta in (0.0, 0.0, 0.2)]
  np.testing.assert_array_equal(runs[0], runs[1])
  assert np.abs(runs[0] - runs[2]).min() > 1e-4


def test_dynamic_threshold():
  """Data at 1, 2, 3 with the median as threshold end at 1/2, 1, 1; and it takes the place of clipping."""
  value = jnp.array([1.0, 2.0, 3.0])
  for sampler in (ddim, ddpm, *SOLVERS):
    for clip in (False, True):
      out = sampler(
          lambda x, t: jnp.zeros_like(x) + value, sample_keys(KEY, 0, 2), (3,), SHORT, "x0", steps=4, clip=clip,
          spacing="leading", dynamic_threshold=0.5,
      )
      np.testing.assert_allclose(out, [[0.5, 1, 1]] * 2, atol=1e-5)


@pytest.mark.parametrize("sampler, extra", [(ddim, {"eta": 0.7}), (ddpm, {}), *((solver, {}) for solver in SOLVERS)])
def test_a_sample_depends_on_seed_and_index_alone(sampler, extra):
  """Batches of 4 give the images of one batch of 8; another seed gives others."""
  sample = jax.jit(lambda keys: sampler(network, keys, (4,), SHORT, steps=5, spacing="linspace", **extra))

  def run(seed, first, count):
    return np.asarray(sample(sample_keys(jax.random.key(seed), first, count)))

  whole = run(1, 0, 8)
  np.testing.assert_allclose(np.concatenate([run(1, 0, 4), run(1, 4, 4)]), whole, rtol=1e-6, atol=1e-6)
  assert len({image.tobytes() for image in whole}) == 8
  assert np.abs(run(2, 0, 8) - whole).min() > 1e-5


def test_float32_whatever_the_schedule():
  """Schedules are float64, samples are float32."""
  assert ddim(network, sample_keys(KEY, 0, 1), (2,), SHORT, steps=2).dtype == jnp.float32

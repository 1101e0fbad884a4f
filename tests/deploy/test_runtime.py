"""The loaded model: it predicts what the trained student does, holds bits, samples, and says what it cannot do."""

import dataclasses
import logging

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from binarydm_jax import quant
from binarydm_jax.deploy import kernels, load
from binarydm_jax.deploy.agreement import activation_codes, agreement, layer_errors, nudged
from tests.deploy.test_packed import DIFFUSION, MODELS, SHAPE, student, write

DEEPER = dict(weights="lmb", act_bits=4, edge_bits=8, channel_mult=(1, 2), model_channels=16)


def inputs(made, batch=4):
  x, t = jax.random.normal(jax.random.key(9), (batch, *SHAPE)), jnp.arange(batch) * 24
  return x, t, jnp.arange(batch) % 3 if made[0].num_classes else None


SLOW = ("lmb a4", "lsq3 a8 conditional", "lsq a8 asymmetric", "lmb conditional, scale and shift", "deeper")


@pytest.mark.parametrize("name", [
  "lmb a4 asymmetric", "cross-attention",
  *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW),
])  # fmt: skip
def test_agrees_with_the_trained_student(name, tmp_path):
  """Integers against the training graph: the share of flipped activation codes and the error of the prediction."""
  made = student(**{**MODELS, "deeper": DEEPER}[name])
  write(tmp_path / "m", made)
  ours = load(tmp_path / "m", "xla")
  found = agreement((ours.model, ours.variables), (made[0], made[3]), *inputs(made))
  print(f"\n{name}: {found}")
  # float32 sums in another order may decide a tie: with these seeds they hardly do.
  assert found["flipped"] < 1e-4 and found["relative_error"] < 1e-3
  # Alone, given the same input, each layer differs by the rounding of one sum.
  errors = layer_errors((ours.model, ours.variables), (made[0], made[3]), *inputs(made))
  assert set(errors) == {path for path, rule in made[1].items() if rule.weights != "float"}
  assert max(errors.values()) < 2e-6
  assert (found["codes"] > 1000) == any(rule.act_bits != 32 for rule in made[1].values())


def test_agreement_sees_other_codes(tmp_path):
  """The measure itself: one step changed by a half flips codes of that layer and moves the prediction."""
  made = student("baseline", act_bits=4)
  flat = flax.traverse_util.flatten_dict(made[3]["quant"], sep="/")
  flat["middle/res/conv1/step"] = flat["middle/res/conv1/step"] * 1.5
  other = {"params": made[3]["params"], "quant": flax.traverse_util.unflatten_dict(flat, sep="/")}
  found = agreement((made[0], other), (made[0], made[3]), *inputs(made))
  assert found["flipped"] > 1e-3 and found["relative_error"] > 1e-3
  same = agreement((made[0], nudged(made[3])), (made[0], made[3]), *inputs(made))
  assert same["flipped"] < 1e-3 and 0 < same["relative_error"] < 0.02
  codes = activation_codes(made[0], made[3], *inputs(made))[1]
  assert codes["middle/res/conv1"][0].shape == (4, 8, 8, 8) and len(codes["middle/attn/qk"]) == 2
  assert codes["input_0/conv"] == []


def test_weights_stay_bits(tmp_path):
  """What the model holds is what the file holds, whatever the rules; the float back end holds 32 bits a weight."""
  for name in ("lmb a4", "lsq3 a8 conditional", "full precision a32"):
    made = student(**MODELS[name])
    for remainder in ("float32", "bfloat16"):
      payload, header = write(tmp_path / "m", made, remainder=remainder)
      assert load(tmp_path / "m", "xla").nbytes == payload
  write(tmp_path / "m", student(**DEEPER))
  packed = load(tmp_path / "m", "xla")
  assert packed.nbytes * 8 < load(tmp_path / "m", "float").nbytes
  leaves = flax.traverse_util.flatten_dict(packed.variables, sep="/")
  assert not [name for name in leaves if name.startswith("params") and name.endswith("/kernel")]


def test_sampling(tmp_path):
  """Sample i depends on (key, i) alone; labels, sampler and steps reach the program; latents are not clipped."""
  made = student("baseline", num_classes=3, null_class=True)
  write(tmp_path / "m", made)
  model = load(tmp_path / "m", "xla")
  key = jax.random.key(5)
  images = model.sample(key, 4, steps=3)
  assert images.shape == (4, *SHAPE) and images.dtype == jnp.float32
  np.testing.assert_allclose(model.sample(key, 2, steps=3), images[:2], atol=1e-5)
  np.testing.assert_allclose(model.sample(key, 4, steps=3, labels=[0, 1, 2, 0]), images, atol=1e-6)
  others = [dict(labels=[1, 1, 1, 1]), dict(sampler="ddpm"), dict(guidance=3.0), dict(clip=False), dict(eta=1.0)]
  for options in others:
    assert float(jnp.abs(model.sample(key, 4, **{"steps": 3, **options}) - images).max()) > 1e-3, options
  assert len(model._samplers) == 5  # one program for each set of options, whatever the labels
  latent = dataclasses.replace(model, first_stage={})
  np.testing.assert_array_equal(latent.sample(key, 4, steps=3), model.sample(key, 4, steps=3, clip=False))
  for options, match in ((dict(sampler="euler"), "sampler 'euler' is not one of ddim"),
                         (dict(steps=500), "sample.steps 500 is not in")):
    with pytest.raises(ValueError, match=match):
      model.sample(key, 1, **options)


def test_one_timestep_for_all(tmp_path):
  write(tmp_path / "m", student("baseline", act_bits=4))
  model = load(tmp_path / "m", "xla")
  x = np.random.default_rng(0).standard_normal((3, *SHAPE), np.float32)
  np.testing.assert_array_equal(model(x, 7), model(x, np.full(3, 7)))
  assert float(jnp.abs(model(x, 7) - model(x, 150)).max()) > 1e-3
  assert model.schedule.num_timesteps == DIFFUSION["num_timesteps"] and model.target == "eps"


def test_bfloat16_computation(tmp_path):
  """The model's compute type is free: near the float32 prediction, and the prediction stays float32."""
  write(tmp_path / "m", student("baseline", act_bits=8))
  model = load(tmp_path / "m", "xla")
  x, t, _ = inputs(student("baseline"))
  half = dataclasses.replace(model, model=model.model.clone(dtype=jnp.bfloat16))
  whole, out = model(x, t), half(x, t)
  assert out.dtype == jnp.float32
  assert 1e-5 < float(jnp.linalg.norm(out - whole) / jnp.linalg.norm(whole)) < 0.1


def test_what_is_refused(tmp_path):
  """An unknown back end; a packed layer without its weights, or with a gate."""
  write(tmp_path / "m", student("baseline", act_bits=4))
  with pytest.raises(ValueError, match="back end 'tpu' is not one of auto, xla, cpu, float"):
    load(tmp_path / "m", "tpu")
  model = load(tmp_path / "m", "xla")
  x, t, _ = inputs(student("baseline"))
  variables = {name: model.variables[name] for name in ("params", "quant")}
  with pytest.raises(ValueError, match="layer 'middle/res/conv1' is packed, and no collection 'packed' was given"):
    model.model.apply(variables, x, t)
  gates = quant.gates_at(jnp.int32(0), [0] * len(model.model.block_names))
  with pytest.raises(ValueError, match="is packed: what a gate could switch is gone"):
    model.model.apply(model.variables, x, t, None, gates)


@pytest.mark.parametrize("activation", [pytest.param("lsq", marks=pytest.mark.slow), "asymmetric"])
def test_native_kernels(activation, tmp_path):
  """The same bits by the native kernels: layers of sign bases go there, the others to XLA, and both agree."""
  if kernels.status()[0] is None:
    pytest.skip(kernels.status()[1])
  made = student(**DEEPER, activation=activation)
  write(tmp_path / "m", made)
  native, xla = load(tmp_path / "m", "cpu"), load(tmp_path / "m", "xla")
  assert native.backend == "cpu"
  assert load(tmp_path / "m").backend == ("xla" if kernels.status()[0] == "portable" else "cpu")
  by = {path: entry.backend for path, entry in native.model.rules.items() if isinstance(entry, quant.PackedLayer)}
  assert by["middle/res/conv1"] == by["middle/attn/qkv"] == "cpu" and by["out_conv"] == by["time_embed_0"] == "xla"
  found = agreement((native.model, native.variables), (made[0], made[3]), *inputs(made))
  print(f"\nnative kernels: {found}")
  assert found["codes"] > 1000 and found["flipped"] < 1e-4 and found["relative_error"] < 1e-3
  key = jax.random.key(0)
  np.testing.assert_allclose(native.sample(key, 2, steps=2), xla.sample(key, 2, steps=2), atol=1e-2)


def test_the_portable_path_is_for_who_asks(tmp_path, monkeypatch, caplog):
  """It is slower than XLA, so "auto" takes XLA and says so; "cpu" takes the path."""
  if kernels.status()[0] is None:
    pytest.skip(kernels.status()[1])
  write(tmp_path / "m", student("baseline", act_bits=4))
  monkeypatch.setenv("BINARYDM_KERNEL", "portable")
  with caplog.at_level(logging.WARNING):
    assert load(tmp_path / "m").backend == "xla"
  assert [record.getMessage() for record in caplog.records] == [
      "the kernels have no fast path for this processor; packed layers run by XLA"]
  assert load(tmp_path / "m", "cpu").backend == "cpu"


def test_without_native_kernels(tmp_path, monkeypatch, caplog):
  """One line says why and what runs instead; asked for by name, they are an error; no line where none is needed."""
  write(tmp_path / "m", student("baseline", act_bits=4))
  monkeypatch.setenv("BINARYDM_KERNEL", "off")
  with caplog.at_level(logging.WARNING):
    assert load(tmp_path / "m").backend == "xla"
  assert [record.getMessage() for record in caplog.records] == [
      "native kernels are off (BINARYDM_KERNEL=off); packed layers run by XLA"]
  with pytest.raises(ValueError, match="back end 'cpu' cannot be had: native kernels are off .*'auto' falls back"):
    load(tmp_path / "m", "cpu")
  caplog.clear()
  write(tmp_path / "m", student("baseline"))  # float activations: nothing for the kernels
  assert load(tmp_path / "m").backend == load(tmp_path / "m", "xla").backend == "xla" and not caplog.records

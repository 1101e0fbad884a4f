"""What the PyTorch side is told: plain values and numpy arrays, so that its process imports no jax."""

# Fields of the UNet, and the values that the PyTorch network has.
MODEL = dict(
    layout="ldm", scale_shift=False, resblock_updown=False, dropout=0.0, num_classes=0, context_dim=0,
)  # fmt: skip


def refusal(problem):
  """One line that says what of a config the PyTorch side does not have, or ""."""
  config = problem.config
  wanted = [(f"model.{name}", getattr(problem.teacher, name), value) for name, value in MODEL.items()]
  wanted += [("compute.dtype", config.compute.dtype, "float32"), ("compute.remat", config.compute.remat, "none")]
  wanted += [("diffusion.target", config.diffusion.target, "eps"), ("diffusion.loss", config.diffusion.loss, "l2")]
  for name, value, supported in wanted:
    if value != supported:
      return f"{name} is {value!r}; PyTorch is compared for {supported!r} alone"
  if problem.mimic or not all(rule.plain and rule.activation == "lsq" for rule in problem.table.values()):
    return f"PyTorch is not compared for method {config.method!r}"
  weights = {rule.weights for rule in problem.table.values()} - {"float", "one_basis", "multi_basis"}
  return f"PyTorch is not compared for weights by {min(weights)}" if weights else ""


def describe(problem, variables, frozen):
  """The training step of a problem without jax.

  Args:
    variables: the student's {"params", "quant"}.
    frozen: {"teacher": params, "projections": tuple}, as `stages.initial_student` gives them.
  Returns:
    A dict of plain values and numpy arrays: what `torch_train.TorchStep` takes.
  """
  import numpy as np

  config, model = problem.config, problem.teacher
  specs = model.block_specs()
  rules = {path: (0 if rule.weights == "float" else rule.bases, rule.act_bits) for path, rule in problem.table.items()}
  return dict(
      network=dict(
          in_channels=problem.input_shape[-1], out_channels=model.out_channels, model_channels=model.model_channels,
          norm_groups=model.norm_groups, blocks=specs,
          heads={spec["channels"]: model.heads(spec["channels"]) for _, spec in specs},
      ),
      rules=rules,
      student=torch_parameters(variables),
      teacher=torch_parameters({"params": frozen["teacher"]}) if problem.distil else None,
      projections=[np.asarray(p) for p in frozen["projections"]],
      lrm_weight=config.distill.weight,
      alphas_cumprod=np.asarray(problem.schedule.alphas_cumprod),
      image_shape=(config.student.batch_size, *problem.input_shape),
      **{name: config.student[name] for name in ("learning_rate", "weight_decay", "clip_norm", "ema_decay")},
  )  # fmt: skip


def torch_parameters(variables):
  """{name in TorchUNet: numpy array} of our variables: kernels [..., cin, cout] become [cout, cin, ...]."""
  import flax.traverse_util
  import numpy as np

  names = {"kernel": "weight", "scale": "weight", "step": "act.step", "step_a": "act_a.step", "step_b": "act_b.step"}
  named = {}
  for tree in variables.values():
    for path, leaf in flax.traverse_util.flatten_dict(tree).items():
      leaf = np.asarray(leaf)
      if path[-1] == "kernel":
        leaf = np.moveaxis(leaf, (-1, -2), (0, 1))
      # A copy: what jax gives may not be written, which PyTorch wants.
      named[".".join((*path[:-1], names.get(path[-1], path[-1])))] = np.array(leaf, order="C")
  return named

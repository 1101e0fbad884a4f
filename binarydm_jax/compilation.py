"""Programs that run once: on CPUs they are compiled without optimizations, which would take longer than they save."""

import jax

# Convolutions and products are library calls, as fast as ever.
QUICKLY = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}


def jit_once(function, **kwargs):
  """`jax.jit` for a function that is called once, or a few times: on a CPU faster to compile, and slower to run.

  On other devices it is `jax.jit`. The results may differ in rounding from those of another compilation.

  Args:
    function, **kwargs: of `jax.jit`.
  """
  options = QUICKLY if jax.default_backend() == "cpu" else None
  return jax.jit(function, compiler_options=options, **kwargs)

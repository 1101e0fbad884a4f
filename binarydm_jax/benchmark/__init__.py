"""Programs that measure time and memory: python -m binarydm_jax.benchmark NAME; `__main__` lists the names."""

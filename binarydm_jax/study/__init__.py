"""Methods beside each other by equal budgets: python -m binarydm_jax.study; `rows` is what is compared.

`plan` turns rows and seeds into runs, `runner` runs what is not finished, `results` and `tables` say what came out,
`figures` draws it. Each run is a process of `binarydm_jax.main` in a workdir of its own.
"""

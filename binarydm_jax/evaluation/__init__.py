"""How good samples are: `features.load(name)` turns images into vectors, `reference` measures the real images once,
`samples.evaluate_samples` compares; below them one file for each metric.

`train_digits_classifier` is the script that made the weights shipped beside it.
"""

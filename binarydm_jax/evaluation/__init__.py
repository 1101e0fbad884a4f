"""How good samples are: `features.load(name)` turns images into vectors, `reference` measures the real images once,
`samples.evaluate_samples` compares; below them one file for each metric.

`train_classifier` makes a feature network (`classifier`) of labelled images; `train_digits_classifier` made the
weights that are shipped.
"""

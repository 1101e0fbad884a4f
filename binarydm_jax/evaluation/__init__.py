"""How good samples are: `features.load(name)` turns images into vectors, `metrics` compares two sets of vectors.

`train_digits_classifier` is the script that made the weights shipped beside it.
"""

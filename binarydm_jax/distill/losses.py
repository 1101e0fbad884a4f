"""The LRM loss (BinaryDM, Eq. 13-14)."""

import jax.numpy as jnp


def lrm_terms(student, teacher, projections):
  """mean((F_student E - F_teacher E)^2) of each block: a list of M float32 scalars.

  Args:
    student, teacher: tuples of [batch, ..., c_i].
    projections: tuple of [c_i, r_i], or () for the plain feature MSE.
  """
  terms = []
  for i, (s, t) in enumerate(zip(student, teacher, strict=True)):
    difference = s.astype(jnp.float32) - t.astype(jnp.float32)
    if projections:
      difference = difference @ projections[i]  # the projection is linear: project the difference once
    terms.append(jnp.mean(difference**2))
  return terms


def lrm_loss(student, teacher, projections):
  """The mean of `lrm_terms` over the blocks. Eq. 14 prints a norm; the text and the code say mean squared error."""
  terms = lrm_terms(student, teacher, projections)
  return sum(terms) / len(terms)

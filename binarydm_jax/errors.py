"""Errors that a run tells its user in one line."""


class RunError(RuntimeError):
  """A run cannot go on; the message says why and what to do."""

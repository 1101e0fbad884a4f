"""Compares finished runs: python -m binarydm_jax.compare WORKDIR [WORKDIR ...]

Prints a Markdown table of every workdir's results.json, the students by method and settings, mean and standard
deviation over seeds.
"""

import collections
import json
import statistics
import sys
from pathlib import Path

from binarydm_jax.formats import format_bytes

COLUMNS = ("model", "seeds", "bits W/A", "true bits a weight", "Frechet distance", "held-out loss", "size")


# Fields that figures depend on, with what they are where an older run does not say.
PROTOCOL = (
  ("feature_sha256", None), ("num_samples", None), ("sampler", None), ("steps", None), ("eta", None), ("clip", None),
  ("dynamic_threshold", 0.0), ("spacing", None), ("guidance", 1.0),
)  # fmt: skip


def spread(values):
  """"mean +- standard deviation", or "-" where a value is missing."""
  if any(value is None for value in values):
    return "-"
  mean = statistics.mean(values)
  digits = max(0, 3 - len(str(int(abs(mean))))) if abs(mean) >= 1 else 4
  spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
  return f"{mean:.{digits}f}{spread}"


def check_protocols(results):
  """ValueError where results.json contents were measured by different protocols, or against different real images."""
  for name, of in (("real images", real_images), ("held-out images", lambda result: result.get("heldout"))):
    found = {json.dumps(of(result), sort_keys=True) for result in results if of(result)}  # an older file does not say
    if len(found) > 1:
      raise ValueError(f"the runs were measured by different {name}: {sorted(found)}; evaluate them alike")
  protocols = {
      (result.get("title"), *(str(model.get(*key)) for key in PROTOCOL)) for result in results
      for model in result["models"]
  }  # fmt: skip
  if len(protocols) > 1:
    raise ValueError(f"the runs were measured by different protocols: {sorted(protocols)}; evaluate them alike")


def real_images(result):
  """What results.json says of the reference, without what was measured of it and where it was."""
  names = ("network", "sha256", "count", "kept", "image_shape", "images_sha256", "file_sha256")
  return {name: value for name, value in (result.get("reference") or {}).items() if name in names}


def compare(results):
  """List of results.json contents -> rows of text under COLUMNS: the teacher first, then each method.

  Raises:
    ValueError: runs that were measured by different protocols.
  """
  check_protocols(results)
  groups = collections.OrderedDict()
  # A file of before does not say its settings: it stands with the method's others, if those are of one kind.
  kinds = {}
  for result in results:
    kinds.setdefault(result["method"], set()).add(_kind(result))
  for result in results:
    for model in result["models"]:
      if model["name"] == "teacher":
        key = (False, "teacher", model["bits"], model["size_bytes"])
      else:
        # One row for runs that differ in their seeds alone.
        known = {kind for kind in kinds[result["method"]] if kind[0]}
        key = (True, result["method"], model["bits"], _kind(result) if len(known) > 1 else None)
      groups.setdefault(key, []).append((result, model))
  rows = []
  for key, found in sorted(groups.items(), key=lambda item: item[0][0]):
    is_student, name, bits, _ = key
    models = [model for _, model in found]
    # The same teacher evaluated again gives the same figures: it counts once.
    unique = models if is_student else list({(m["fid"], m["heldout_loss"]): m for m in models}.values())
    if is_student:
      alike = [others[0][0] for other, others in groups.items() if other[:3] == key[:3]]
      name = ", ".join([name, *_apart(found[0][0], alike)])
    rows.append((
        name,
        str(len(unique)),
        bits,
        f"{unique[0]['true_weight_bits']:.2f}",
        spread([m["fid"] for m in unique]),
        spread([m["heldout_loss"] for m in unique]),
        format_bytes(unique[0]["size_bytes"]),
    ))
  return rows


def _apart(result, alike):
  """What a row says beside its method: the step of an unfinished student; settings in which rows of the same method and
  bits differ; where these are equal, the digest that is not."""
  packed = result.get("packed") or {}
  if packed.get("step", 0) < packed.get("steps", 0):
    yield f"step {packed['step']} of {packed['steps']}"
  own = result.get("settings") or {}
  settings = [other.get("settings") or {} for other in alike]
  for name, value in own.items():
    if any(other.get(name, value) != value for other in settings):
      yield f"{name}={value}"
  digest = result.get("settings_sha256")
  if any(theirs == own and other.get("settings_sha256") != digest for theirs, other in zip(settings, alike)):
    yield f"settings {digest[:6] if digest else 'unknown'}"


def _kind(result):
  """What runs of one row have in common: the SHA-256 of the settings, and the step, which of an unfinished student that
  was exported all the same is an earlier one."""
  return result.get("settings_sha256"), (result.get("packed") or {}).get("step")


def read_results(folder):
  """The content of folder/results.json.

  Raises:
    ValueError: it is missing or damaged.
  """
  path = Path(folder) / "results.json"
  try:
    results = json.loads(path.read_text())
    results["models"][0]["name"]
    return results
  except OSError:
    raise ValueError(f"{path} does not exist; run --mode=all or --mode=evaluate there first") from None
  except (json.JSONDecodeError, LookupError, TypeError):
    raise ValueError(f"{path} is damaged; remove it and run --mode=evaluate there") from None


def main(argv):
  if not argv:
    sys.exit("error: name at least one workdir")
  if len({Path(folder).resolve() for folder in argv}) < len(argv):
    sys.exit("error: a workdir is named twice")
  try:
    results = [read_results(folder) for folder in argv]
    rows = compare(results)
  except ValueError as error:
    sys.exit(f"error: {error}")
  print("| " + " | ".join(COLUMNS) + " |\n|" + " --- |" * len(COLUMNS))
  for row in rows:
    print("| " + " | ".join(row) + " |")
  reference = results[0].get("reference")
  if reference and reference["fid"] is not None:
    print(f"\nFor scale: {reference['what']} gives {reference['fid']:.1f}.")


if __name__ == "__main__":
  main(sys.argv[1:])

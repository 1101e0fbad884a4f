"""How published checkpoints name the parameters that our networks have.

Layouts of a U-Net: "compvis" (ADM and latent diffusion), "ddpm" (the PyTorch ports of DDPM), "diffusers"; of a first
stage: "compvis", "diffusers". Names are relative to the network's own prefix in the file.
"""

import re

from binarydm_jax.importers.mapping import Entry

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "embedding": "weight"}

RES = {
  "compvis": {"norm1": "in_layers.0", "conv1": "in_layers.2", "emb": "emb_layers.1", "norm2": "out_layers.0",
              "conv2": "out_layers.3", "skip": "skip_connection"},
  "ddpm": {"norm1": "norm1", "conv1": "conv1", "emb": "temb_proj", "norm2": "norm2", "conv2": "conv2",
           "skip": "nin_shortcut"},
  "diffusers": {"norm1": "norm1", "conv1": "conv1", "emb": "time_emb_proj", "norm2": "norm2", "conv2": "conv2",
                "skip": "conv_shortcut"},
}  # fmt: skip
# Parts of a self-attention; how many trailing ones its linears have.
ATTENTION = {
  "compvis": ({"norm": ("norm",), "qkv": ("qkv",), "proj": ("proj_out",)}, 1),
  "ddpm": ({"norm": ("norm",), "qkv": ("q", "k", "v"), "proj": ("proj_out",)}, 2),
  "diffusers": ({"norm": ("group_norm",), "qkv": ("to_q", "to_k", "to_v"), "proj": ("to_out.0",)}, 0),
}
TRANSFORMER = {"norm": "norm", "proj_in": "proj_in", "proj_out": "proj_out"}
TRANSFORMER_BLOCK = {"norm1": "norm1", "norm2": "norm2", "norm3": "norm3", "ff_in": "ff.net.0.proj",
                     "ff_out": "ff.net.2"}  # fmt: skip
CROSS_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}
UNET_ENDS = {
  "compvis": {"time_embed_0": "time_embed.0", "time_embed_1": "time_embed.2", "label_embed": "label_emb",
              "out_norm": "out.0", "out_conv": "out.2"},
  "ddpm": {"time_embed_0": "temb.dense.0", "time_embed_1": "temb.dense.1", "label_embed": "label_embed",
           "out_norm": "norm_out", "out_conv": "conv_out"},
  "diffusers": {"time_embed_0": "time_embedding.linear_1", "time_embed_1": "time_embedding.linear_2",
                "label_embed": "class_embedding", "out_norm": "conv_norm_out", "out_conv": "conv_out"},
}  # fmt: skip
# The order of a block's parts is their number in latent diffusion's code.
PARTS = ("conv", "res", "attn", "transformer", "res1", "down", "down_res", "up", "up_res")


def _inside(part, rest, layout, heads, prefix):
  """(names, heads, ones) of what lies in one residual block, attention or transformer; `rest` is our path inside it."""
  leaf = LEAVES[rest[-1]]
  if part.startswith(("res", "down_res", "up_res")):
    return (f"{prefix}.{RES[layout][rest[0]]}.{leaf}",), 1, 0
  if part == "attn":
    names, ones = ATTENTION[layout]
    return tuple(f"{prefix}.{name}.{leaf}" for name in names[rest[0]]), heads, ones
  if part == "transformer" and rest[0].startswith("block_"):
    block = f"{prefix}.transformer_blocks.{rest[0].removeprefix('block_')}"
    if rest[1] in ("attn1", "attn2"):
      return (f"{block}.{rest[1]}.{CROSS_ATTENTION[rest[2]]}.{leaf}",), 1, 0
    return (f"{block}.{TRANSFORMER_BLOCK[rest[1]]}.{leaf}",), 1, 0
  if part == "transformer":
    return (f"{prefix}.{TRANSFORMER[rest[0]]}.{leaf}",), 1, 2 if rest[0].startswith("proj") else 0
  return (f"{prefix}.{leaf}",), 1, 0  # a convolution by itself


def _compvis_place(block, part, parts, model):
  """Prefix of one part of a U-Net's block."""
  number = [p for p in PARTS if p in parts].index(part)
  kind, _, index = block.partition("_")
  stack = {"input": f"input_blocks.{index}", "middle": "middle_block", "output": f"output_blocks.{index}"}[kind]
  suffix = {"down": ".op", "up": ".conv"}.get(part, "")
  return f"{stack}.{number}{suffix}"


def _place_in_level(block, model):
  """("down" or "up", level, number in the level) of an encoder's or decoder's block."""
  kind, _, index = block.partition("_")
  stride, index = model.num_res_blocks + 1, int(index)
  if kind == "input":
    return "down", (index - 1) // stride, (index - 1) % stride
  return "up", len(model.channel_mult) - 1 - index // stride, index % stride


def _ddpm_place(block, part, parts, model):
  if block == "input_0":
    return "conv_in"
  if block == "middle":
    return {"res": "mid.block_1", "attn": "mid.attn_1", "res1": "mid.block_2"}[part]
  way, level, number = _place_in_level(block, model)
  inside = {"res": f"block.{number}", "attn": f"attn.{number}", "down": "downsample.conv", "up": "upsample.conv"}
  return f"{way}.{level}.{inside[part]}"


def _diffusers_place(block, part, parts, model):
  if block == "input_0":
    return "conv_in"
  if block == "middle":
    return {"res": "mid_block.resnets.0", "res1": "mid_block.resnets.1"}.get(part, "mid_block.attentions.0")
  way, level, number = _place_in_level(block, model)
  stack = f"{way}_blocks.{level if way == 'down' else len(model.channel_mult) - 1 - level}"
  inside = {"res": f"resnets.{number}", "attn": f"attentions.{number}", "transformer": f"attentions.{number}",
            "down": "downsamplers.0.conv", "down_res": "downsamplers.0", "up": "upsamplers.0.conv",
            "up_res": "upsamplers.0"}  # fmt: skip
  return f"{stack}.{inside[part]}"


PLACES = {"compvis": _compvis_place, "ddpm": _ddpm_place, "diffusers": _diffusers_place}


def unet_entries(model, paths, layout):
  """An Entry for each parameter of a UNet.

  Args:
    model: the UNet.
    paths: of its parameters, joined by "/".
    layout: "compvis", "ddpm" or "diffusers".
  """
  blocks = {}
  for path in paths:
    block, part, *_ = path.split("/")
    blocks.setdefault(block, set()).add(part)
  channels = {name: spec["channels"] for name, spec in model.block_specs()}
  entries = []
  for path in paths:
    block, part, *rest = path.split("/")
    if block in UNET_ENDS[layout]:
      name = UNET_ENDS[layout][block]
      if block == "label_embed" and layout == "compvis" and model.context_dim:
        name = "class_embedder"  # kept outside the U-Net in the file; the reader gives it this name
      entries.append(Entry(path, (f"{name}.{LEAVES[part]}",)))
      continue
    prefix = PLACES[layout](block, part, blocks[block], model)
    entries.append(Entry(path, *_inside(part, rest, layout, model.heads(channels[block]), prefix)))
  return entries


def _autoencoder_place(half, part, layout, levels):
  """Prefix of "level_2_res_0", "mid_attn_0", "conv_in", ... in one half of a first stage."""
  fixed = {"conv_in": "conv_in", "conv_out": "conv_out", "norm_out": "norm_out"}
  if part in fixed:
    return f"{half}.{'conv_norm_out' if layout == 'diffusers' and part == 'norm_out' else part}"
  found = re.fullmatch(r"mid_(res|attn)_(\d)", part)
  if found:
    kind, number = found[1], int(found[2])
    if layout == "diffusers":
      return f"{half}.mid_block.{'resnets' if kind == 'res' else 'attentions'}.{number}"
    return f"{half}.mid.{'block' if kind == 'res' else 'attn'}_{number + 1}"
  level, kind, number = re.fullmatch(r"level_(\d+)_(res|attn|down|up)_?(\d*)", part).groups()
  way = "down" if half == "encoder" else "up"
  if layout == "diffusers":
    level = int(level) if way == "down" else levels - 1 - int(level)
    inside = {"res": f"resnets.{number}", "attn": f"attentions.{number}"}.get(kind, f"{kind}samplers.0.conv")
    return f"{half}.{way}_blocks.{level}.{inside}"
  inside = {"res": f"block.{number}", "attn": f"attn.{number}"}.get(kind, f"{kind}sample.conv")
  return f"{half}.{way}.{level}.{inside}"


def autoencoder_entries(model, paths, layout):
  """An Entry for each parameter of an Autoencoder; layout "compvis" or "diffusers"."""
  inner = {"compvis": "ddpm", "diffusers": "diffusers"}[layout]
  entries = []
  for path in paths:
    half, part, *rest = path.split("/")
    if half == "codebook":
      entries.append(Entry(path, ("quantize.embedding.weight",)))
    elif half in ("quant_conv", "post_quant_conv"):
      entries.append(Entry(path, (f"{half}.{LEAVES[part]}",)))
    else:
      prefix = _autoencoder_place(half, part, layout, len(model.channel_mult))
      kind = "attn" if "_attn_" in part else "res" if "_res_" in part else part
      entries.append(Entry(path, *_inside(kind, rest, inner, 1, prefix)))
  return entries

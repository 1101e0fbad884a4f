"""Pictures of a run: image grids and training curves, and how a page shows them."""

import functools
import html
import io
import json
import math
import pathlib

import numpy as np
from matplotlib import ticker
from PIL import Image, ImageDraw, ImageFont

from binarydm_jax import panels
from binarydm_jax.files import write_atomically

MIN_TILE_WIDTH = 32  # Pixels; below it a person sees texture, not a picture.
GAP_GREY = 128  # Between the tiles of a grid: visible beside black and beside white images.

# Title, is it noisy, and the lines: (label, colour, stage, keys of which the first found is drawn).
PANELS = (
    ("Denoising loss", True,
     (("teacher", "teacher", "teacher", ("simple", "loss")), ("student", "student", "student", ("simple", "loss")))),
    ("The student's loss, and its terms before their weights", True,
     (("total", "loss", "student", ("loss",)), ("denoising", "simple", "student", ("simple",)),
      ("feature alignment (LRM)", "lrm", "student", ("lrm",)),
      ("teacher's prediction (NeM)", "teacher", "student", ("nem",)))),
    ("Learning rate", False,
     (("teacher", "teacher", "teacher", ("learning_rate",)), ("student", "student", "student", ("learning_rate",)))),
    ("Weight of the second basis", False, (("student", "student", "student", ("second_scale",)),)),
)


def image_grid(images, columns=None, scale=None, pad=1):
  """Lays images out in rows, left to right and top to bottom.

  Args:
    images: uint8 [n, H, W, C], C = 1 (drawn as grey) or 3.
    columns: images a row; None: the smallest square that holds them.
    scale: whole factor of enlargement by nearest neighbour; None: the smallest that makes a tile 32 pixels wide.
    pad: gap between tiles, in pixels of the images before enlargement.

  Returns:
    PIL image of mode L or RGB, scale * (columns * W + (columns - 1) * pad) pixels wide; unfilled places have the
    colour of the gap.
  """
  images = np.asarray(images)
  if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape:
    raise ValueError(f"images must be non-empty uint8 [n, H, W, 1 or 3], not {images.dtype} {list(images.shape)}")
  n, height, width, channels = images.shape
  columns = columns or math.ceil(math.sqrt(n))
  scale = scale or max(1, math.ceil(MIN_TILE_WIDTH / width))
  rows = math.ceil(n / columns)
  canvas = np.full((rows * (height + pad), columns * (width + pad), channels), GAP_GREY, np.uint8)
  for i, image in enumerate(images):
    top, left = (i // columns) * (height + pad), (i % columns) * (width + pad)
    canvas[top : top + height, left : left + width] = image
  canvas = canvas[: canvas.shape[0] - pad, : canvas.shape[1] - pad]
  canvas = canvas.repeat(scale, axis=0).repeat(scale, axis=1)
  return Image.fromarray(canvas[..., 0] if channels == 1 else canvas)


def side_by_side(grids, gap=24):
  """Captioned grids in a row.

  Args:
    grids: caption -> uint8 [n, H, W, C], see `image_grid`.
    gap: pixels between them.
  Returns:
    PIL image, RGB on white.
  """
  pictures = {caption: image_grid(images).convert("RGB") for caption, images in grids.items()}
  # As large as fits between the middles of the gaps.
  fits = lambda font: all(font.getlength(caption) < p.width + gap / 2 for caption, p in pictures.items())
  fonts = (ImageFont.load_default(size=size) for size in range(20, 7, -1))
  font = next((font for font in fonts if fits(font)), ImageFont.load_default(size=8))
  top = 36
  width = sum(p.width for p in pictures.values()) + gap * (len(pictures) + 1)
  canvas = Image.new("RGB", (width, top + max(p.height for p in pictures.values()) + gap), "white")
  left = gap
  for caption, picture in pictures.items():
    ImageDraw.Draw(canvas).text((left + picture.width / 2, top / 2), caption, fill="black", font=font, anchor="mm")
    canvas.paste(picture, (left, top))
    left += picture.width + gap
  return canvas


def png_bytes(image):
  """PIL image -> bytes of a PNG file."""
  buffer = io.BytesIO()
  image.save(buffer, format="PNG", optimize=True)
  return buffer.getvalue()


def save_png(path, image):
  """Writes a PIL image as PNG under a temporary name, then renames."""
  write_atomically(path, png_bytes(image))


def read_curves(path):
  """Reads `metrics.jsonl`, lines like `{"stage": "student", "step": 100, "loss": 0.5, "lrm": 0.1}`.

  A killed run leaves half a line, at the end or, once resumed, in the middle: unreadable lines are passed over. Where
  a resumed run repeats a step, its later value counts.

  Returns:
    {stage: {name: (steps int64 [n], ascending, values float64 [n])}}; {} where there is no file.
  """
  path = pathlib.Path(path)
  found = {}
  for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
    try:
      record = json.loads(line)
      stage, step = str(record.pop("stage")), int(record.pop("step"))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
      continue
    for name, value in record.items():
      if isinstance(value, (int, float)) and not isinstance(value, bool):
        found.setdefault(stage, {}).setdefault(name, {})[step] = float(value)
  return {stage: {name: (np.array(sorted(points)), np.array([points[step] for step in sorted(points)]))
                  for name, points in series.items()} for stage, series in found.items()}


def smooth(values, window):
  """Centred running mean of `window` values [n] -> [n]; shorter at the ends, not-finite values left out."""
  kernel = np.ones(2 * (window // 2) + 1)
  finite = np.isfinite(values)
  half = len(kernel) // 2
  total = np.convolve(np.where(finite, values, 0.0), kernel)[half : half + len(values)]
  count = np.convolve(finite.astype(float), kernel)[half : half + len(values)]
  return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _draw_curves(lines, is_noisy, axes, theme):
  """Draws [(label, colour name, steps, values)] over training steps."""
  for label, color, steps, values in lines:
    color = theme[color]
    marker = "o" if len(values) == 1 else None
    if is_noisy and len(values) >= 10:
      axes.plot(steps, values, color=color, alpha=0.35, linewidth=0.8)
      values = smooth(values, max(3, len(values) // 20))
    axes.plot(steps, values, color=color, linewidth=1.8, label=label, marker=marker, solid_capstyle="round")
  everything = np.concatenate([values for *_, values in lines])
  _scale_axes(axes, everything[np.isfinite(everything)], is_noisy)
  panels.step_axis(axes)


def _scale_axes(axes, values, is_noisy):
  """Logarithmic y where everything is positive and spans enough for it to help, in plain numbers."""
  low, high = values.min(), values.max()
  if is_noisy and low > 0 and high / low >= 3:
    panels.log_axis(axes, low, high)
  elif not is_noisy:
    axes.set_ylim(bottom=min(0.0, 1.08 * low), top=1.08 * high if high > 0 else None)
  axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))


def _image_url(image):
  """PIL image -> data URL, sharp on a dense screen and never huge."""
  if image.width < 560:
    factor = math.ceil(560 / image.width)
    image = image.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST)
  elif image.width > 840:
    image = image.resize((840, max(1, round(840 * image.height / image.width))), Image.Resampling.LANCZOS)
  data, kind = png_bytes(image), "png"
  if len(data) > 250_000:  # Photographs: as PNG a page of them has many megabytes; `samples/` keeps the exact ones.
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=88)
    data, kind = buffer.getvalue(), "jpeg"
  return panels.data_url(data, kind)


def grid_figures(grids, captions):
  """{name: PIL image or uint8 [n, H, W, C]}, {name: caption} -> HTML of the grids side by side."""
  figures = []
  for name, grid in grids.items():
    caption = html.escape(str(captions.get(name, name)))
    url = _image_url(grid if isinstance(grid, Image.Image) else image_grid(grid))
    figures.append(f'<figure><img src="{url}" alt="{caption}"><figcaption>{caption}</figcaption></figure>')
  return f'<div class="grids">{"".join(figures)}</div>' if figures else ""


def curve_figures(curves):
  """curves as from `read_curves` -> HTML of the panels that have data, each drawn for light and for dark pages."""
  figures = []
  for title, is_noisy, lines in PANELS:
    drawn = []
    for label, color, stage, keys in lines:
      series = curves.get(stage, {})
      key = next((key for key in keys if key in series and np.isfinite(series[key][1]).any()), None)
      if key:
        drawn.append((label, color, np.asarray(series[key][0]), np.asarray(series[key][1], np.float64)))
    if drawn:
      figures.append(panels.panel_figure(title, functools.partial(_draw_curves, drawn, is_noisy)))
  return f'<div class="plots">{"".join(figures)}</div>' if figures else ""


def page_style():
  """CSS of the report, in the colours of the figures: light, or dark where the reader's system asks for it."""
  light, dark = (";".join(f"--{name}:{color}" for name, color in theme.items()) for theme in panels.THEMES.values())
  return f":root{{color-scheme:light dark;{light}}}\n@media(prefers-color-scheme:dark){{:root{{{dark}}}}}{_STYLE}"


_STYLE = """
*{box-sizing:border-box} body{margin:0;background:var(--page);color:var(--text);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1080px;margin:0 auto;padding:48px 24px 72px}
h1{font-size:2rem;line-height:1.2;letter-spacing:-.02em;margin:0 0 12px}
h2{font-size:1.15rem;letter-spacing:-.01em;margin:52px 0 14px}
p{margin:0 0 8px;max-width:80ch} .method{color:var(--student);font-weight:600;font-size:.85rem;margin:0 0 6px}
.note,figcaption,dt,th,.tile span{color:var(--ink);font-size:.86rem} .note{margin-top:12px}
.tiles,.grids,.plots{display:grid;gap:16px}
.tiles{grid-template-columns:repeat(auto-fit,minmax(150px,1fr));margin-top:26px}
.tile{border:1px solid var(--line);border-radius:10px;padding:14px 18px} .tile span{display:block;line-height:1.35}
.tile b{display:block;font-size:1.9rem;line-height:1.25;letter-spacing:-.03em;font-weight:650}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:10px 0 10px 18px;text-align:right;border-bottom:1px solid var(--line);vertical-align:bottom}
th{font-weight:500;line-height:1.3;white-space:pre-line} tbody th{color:var(--text);font-size:1rem}
tbody tr>*{vertical-align:baseline} th:first-child{text-align:left;padding-left:0}
.grids{grid-template-columns:repeat(auto-fit,minmax(210px,1fr))}
.plots{grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:28px}
figure{margin:0} figcaption{margin:8px 0 0} .plots figcaption{margin:0 0 8px;color:var(--text);font-size:1rem}
img{display:block;width:100%;height:auto} .grids img{border-radius:6px}
dl{display:grid;grid-template-columns:minmax(120px,max-content) 1fr;gap:7px 24px;margin:0;align-items:baseline}
dd,pre{margin:0;overflow-wrap:anywhere} pre{white-space:pre-wrap;background:var(--panel);border-radius:8px;
padding:14px 16px;margin:16px 0 0;font:.84rem/1.5 ui-monospace,Menlo,Consolas,monospace}
@media(max-width:720px){main{padding:28px 18px 48px} h1{font-size:1.6rem} h2{margin-top:40px}
.tiles,.grids{grid-template-columns:1fr 1fr;gap:12px} thead{display:none} table,tbody{display:block}
tr{display:block;padding:14px 0;border-bottom:1px solid var(--line)}
tbody th{display:block;padding:0 0 4px;border:0;font-weight:650}
td{display:flex;justify-content:space-between;border:0;padding:2px 0}
td::before{content:attr(data-label);color:var(--ink)}}
"""

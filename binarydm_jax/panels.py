"""How every plot of the report looks: colours, axes, one picture for light pages and one for dark ones."""

import base64
import html
import io

from matplotlib import ticker
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

THEMES = {
    "light": {"page": "#ffffff", "panel": "#f4f6f8", "text": "#1b2129", "ink": "#57606f", "line": "#e3e6eb",
              "teacher": "#7b8696", "student": "#0f766e", "loss": "#0f766e", "simple": "#c2620a", "lrm": "#7c4dd8"},
    "dark": {"page": "#171b21", "panel": "#1f252d", "text": "#e8ecf1", "ink": "#a5afbd", "line": "#2c333d",
             "teacher": "#9aa6b6", "student": "#2dd4bf", "loss": "#2dd4bf", "simple": "#f0a04b", "lrm": "#b197fc"},
}


def draw_panel(draw, theme, size=(5.2, 2.9)):
  """PNG bytes of one panel: draw(axes, theme) puts lines on it, and the rest looks alike in all of them.

  size: width and height in inches, of 150 pixels.
  """
  # The object interface: pyplot keeps global state and may look for a display.
  figure = Figure(figsize=size, dpi=150, facecolor=theme["page"], layout="constrained")
  FigureCanvasAgg(figure)
  axes = figure.add_subplot(facecolor=theme["page"])
  axes.tick_params(labelsize=8.5)
  draw(axes, theme)
  axes.xaxis.label.set(color=theme["ink"], fontsize=9)
  axes.yaxis.label.set(color=theme["ink"], fontsize=9)
  axes.tick_params(which="both", colors=theme["ink"], length=0, pad=5)
  axes.grid(color=theme["line"], linewidth=0.8)
  axes.set_axisbelow(True)
  axes.spines[["top", "right", "left"]].set_visible(False)
  axes.spines["bottom"].set_color(theme["line"])
  if len(axes.get_legend_handles_labels()[1]) > 0:
    axes.legend(frameon=False, fontsize=9, labelcolor=theme["ink"], handlelength=1.2)
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png", facecolor=theme["page"])
  return buffer.getvalue()


def panel_figure(title, draw, caption=""):
  """HTML of a panel, drawn for light and for dark pages, under its title and above its caption."""
  light, dark = (data_url(draw_panel(draw, theme)) for theme in THEMES.values())
  note = f'<p class="note">{html.escape(caption)}</p>' if caption else ""
  return (f'<figure><figcaption>{title}</figcaption><picture><source media="(prefers-color-scheme: dark)" '
          f'srcset="{dark}"><img src="{light}" alt="{title}"></picture>{note}</figure>')


def step_axis(axes):
  """Training steps as x."""
  axes.set_xlabel("training step")
  axes.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True, steps=(1, 2, 2.5, 5, 10)))
  axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda step, _: f"{step:,.0f}"))


def log_axis(axes, low, high):
  """Logarithmic y for values from `low` to `high`, in plain numbers."""
  axes.set_yscale("log")
  # Enough ticks for a narrow range, few enough for a wide one.
  subs = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 9) if high / low < 5 else (1, 2, 5) if high / low < 1e3 else (1,)
  axes.yaxis.set_major_locator(ticker.LogLocator(subs=subs))
  axes.yaxis.set_minor_formatter(ticker.NullFormatter())
  axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))


def data_url(data, kind="png"):
  return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"

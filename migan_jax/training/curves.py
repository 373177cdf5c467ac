"""Training curves as an image; `docs/healthy.md` shows how to read them."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from migan_jax.families import Panel
from migan_jax.files import write_whole
from migan_jax.training.reporting import METRICS_FILE, parse_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CURVES_FILE = "curves.png"

Points = Sequence[Mapping[str, float]]  # lines of metrics.jsonl

# Every family has this panel, in addition to its own.
HELD_OUT = Panel(
    "hole PSNR, dB",
    (
        ("eval/hole_psnr", "held-out", "-"),
        ("eval/mean_colour_psnr", "held-out, mean colour", ":"),
    ),
)
PANEL_COLUMNS = 2


def save_curves(workdir: Path, panels: Sequence[Panel]) -> Path:
    """Draw the curves of a run into its workdir."""
    path = workdir / CURVES_FILE
    figure = draw_curves({"": read_metrics(workdir)}, panels)
    write_whole(path, lambda temp: figure.savefig(temp, format="png", dpi=90))
    return path


def read_metrics(workdir: Path) -> Points:
    """Read metrics.jsonl, one dict per line; "nan" and "inf" become floats."""
    return [
        parse_line(line) for line in (workdir / METRICS_FILE).read_text().splitlines()
    ]


def draw_curves(runs: Mapping[str, Points], panels: Sequence[Panel]) -> "Figure":
    """Draw the curves of runs, given by name; each of several runs has a colour.

    Args:
      panels: the family's. A panel titled like `HELD_OUT` is merged into it.
    """
    from matplotlib.figure import Figure  # pyplot would open windows

    merged = {HELD_OUT.title: HELD_OUT}
    for panel in panels:
        lines = merged[panel.title].lines if panel.title in merged else ()
        merged[panel.title] = panel._replace(lines=lines + panel.lines)
    rows = math.ceil(len(merged) / PANEL_COLUMNS)
    height = 3.5 * rows  # inches
    figure = Figure(figsize=(11, height))
    # Set by hand: matplotlib's layout engines draw everything several times.
    bottom, top = 0.56 / height, 1 - 0.35 / height
    figure.subplots_adjust(0.07, bottom, 0.98, top, wspace=0.2, hspace=0.28)
    axes = list(figure.subplots(rows, PANEL_COLUMNS, squeeze=False).flat)
    for plot, panel in zip(axes, merged.values(), strict=False):
        plot.set_title(panel.title)
        plot.set_xlabel("step")
        plot.grid(alpha=0.3)
        for index, (name, points) in enumerate(runs.items()):
            colour = f"C{index}" if len(runs) > 1 else None
            for metric, label, style in panel.lines:
                full = f"{name}: {label}" if name else label
                _draw_line(plot, points, metric, full, style, colour)
        if panel.logarithmic and plot.lines:
            plot.set_yscale("log")
        if plot.lines:
            plot.legend(fontsize="small")
    for unused in axes[len(merged) :]:
        unused.set_axis_off()
    return figure


def _draw_line(
    plot: "Axes",
    points: Points,
    metric: str,
    label: str,
    style: str,
    colour: str | None,
) -> None:
    found = [(point["step"], point[metric]) for point in points if metric in point]
    if found:
        plot.plot(*zip(*found, strict=True), style, label=label, color=colour)

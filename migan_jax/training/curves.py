"""Curves of a run, as a picture: is it learning, and is the game in balance?

`docs/healthy.md` shows what they look like when all is well, and when it is not.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from migan_jax.families import Panel
from migan_jax.files import write_whole
from migan_jax.training.reporting import METRICS_FILE, numbers_in

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CURVES_FILE = "curves.png"

Points = Sequence[Mapping[str, float]]  # lines of metrics.jsonl

# Of every family, beside its own panels.
HELD_OUT = Panel(
    "hole PSNR, dB",
    (
        ("eval/hole_psnr", "held-out", "-"),
        ("eval/mean_colour_psnr", "held-out, mean colour", ":"),
    ),
)
COLUMNS = 2


def save_curves(workdir: Path, panels: Sequence[Panel]) -> Path:
    """Draw the curves of a run so far into its folder."""
    path = workdir / CURVES_FILE
    figure = draw_curves({"": read_metrics(workdir)}, panels)
    write_whole(path, lambda part: figure.savefig(part, format="png", dpi=90))
    return path


def read_metrics(workdir: Path) -> Points:
    """What a run has reported, line by line; what was not finite is a NaN."""
    return [
        numbers_in(line) for line in (workdir / METRICS_FILE).read_text().splitlines()
    ]


def draw_curves(runs: Mapping[str, Points], panels: Sequence[Panel]) -> "Figure":
    """The curves of runs, by their names; each has a colour if there are several.

    Args:
      panels: the family's; lines of one with the held-out pictures' title join theirs.
    """
    from matplotlib.figure import Figure  # which draws without any window

    titled = {HELD_OUT.title: HELD_OUT}
    for panel in panels:
        lines = titled[panel.title].lines if panel.title in titled else ()
        titled[panel.title] = panel._replace(lines=lines + panel.lines)
    rows = math.ceil(len(titled) / COLUMNS)
    height = 3.5 * rows  # inches
    figure = Figure(figsize=(11, height))
    # By hand: matplotlib's own layouts draw everything several times.
    bottom, top = 0.56 / height, 1 - 0.35 / height
    figure.subplots_adjust(0.07, bottom, 0.98, top, wspace=0.2, hspace=0.28)
    axes = list(figure.subplots(rows, COLUMNS, squeeze=False).flat)
    for drawn, panel in zip(axes, titled.values(), strict=False):
        drawn.set_title(panel.title)
        drawn.set_xlabel("step")
        drawn.grid(alpha=0.3)
        for number, (name, points) in enumerate(runs.items()):
            colour = f"C{number}" if len(runs) > 1 else None
            for metric, label, style in panel.lines:
                full = f"{name}: {label}" if name else label
                _draw_line(drawn, points, metric, full, style, colour)
        if panel.logarithmic and drawn.lines:
            drawn.set_yscale("log")
        if drawn.lines:
            drawn.legend(fontsize="small")
    for unused in axes[len(titled) :]:
        unused.set_axis_off()
    return figure


def _draw_line(
    panel: "Axes",
    points: Points,
    metric: str,
    label: str,
    style: str,
    colour: str | None,
) -> None:
    found = [(point["step"], point[metric]) for point in points if metric in point]
    if found:
        panel.plot(*zip(*found, strict=True), style, label=label, color=colour)

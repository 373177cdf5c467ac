"""Curves of a run, as a picture: is it learning, and is the game in balance?

`docs/healthy.md` shows what they look like when all is well, and when it is not.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from migan_jax.files import write_whole
from migan_jax.training.reporting import METRICS_FILE, numbers_in

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CURVES_FILE = "curves.png"

Points = Sequence[Mapping[str, float]]  # lines of metrics.jsonl

# Panels, and what is drawn in each: a metric, its label, and the line's style.
PANELS = {
    "hole PSNR, dB": (
        ("eval/hole_psnr", "held-out, EMA", "-"),
        ("eval/mean_colour_psnr", "held-out, mean colour", ":"),
        ("g/hole_psnr", "training batches", "--"),
    ),
    "generator's losses": (
        ("g/adversarial", "adversarial", "-"),
        ("g/distillation", "distillation", "--"),
        ("g/l1", "L1", ":"),
    ),
    "discriminator's mean logits": (
        ("d/real", "real", "-"),
        ("d/fake", "fake", "--"),
    ),
    "R1 before its weight": (("d/r1", "R1", "-"),),
}
LOGARITHMIC = "R1 before its weight"


def save_curves(workdir: Path) -> Path:
    """Draw the curves of a run so far into its folder."""
    path = workdir / CURVES_FILE
    figure = draw_curves({"": read_metrics(workdir)})
    write_whole(path, lambda part: figure.savefig(part, format="png", dpi=90))
    return path


def read_metrics(workdir: Path) -> Points:
    """What a run has reported, line by line; what was not finite is a NaN."""
    return [
        numbers_in(line) for line in (workdir / METRICS_FILE).read_text().splitlines()
    ]


def draw_curves(runs: Mapping[str, Points]) -> "Figure":
    """The curves of runs, by their names; each has a colour if there are several."""
    from matplotlib.figure import Figure  # which draws without any window

    figure = Figure(figsize=(11, 7))
    # By hand: matplotlib's own layouts draw everything several times.
    figure.subplots_adjust(0.07, 0.08, 0.98, 0.95, wspace=0.2, hspace=0.28)
    axes = figure.subplots(2, 2).flat
    for panel, (title, series) in zip(axes, PANELS.items(), strict=True):
        panel.set_title(title)
        panel.set_xlabel("step")
        panel.grid(alpha=0.3)
        for number, (name, points) in enumerate(runs.items()):
            colour = f"C{number}" if len(runs) > 1 else None
            for metric, label, style in series:
                full = f"{name}: {label}" if name else label
                _draw_line(panel, points, metric, full, style, colour)
        if title == LOGARITHMIC and panel.lines:
            panel.set_yscale("log")
        if panel.lines:
            panel.legend(fontsize="small")
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

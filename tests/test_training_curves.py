"""Training curves, drawn from metrics.jsonl."""

import json

import numpy as np
from PIL import Image

from migan_jax.families import FAMILIES, Panel
from migan_jax.training.curves import draw_curves, read_metrics, save_curves
from migan_jax.training.reporting import METRICS_FILE

PANELS = FAMILIES["migan"].panels

LINES = (
    {"step": 0, "eval/hole_psnr": 9.5, "eval/mean_colour_psnr": 14.0},
    {"step": 20, "g/adversarial": 0.7, "d/r1": 0.5, "time/step": 0.1},
    {"step": 40, "g/adversarial": "nan", "d/r1": 0.25},
    {"step": 40, "eval/hole_psnr": 12.5, "eval/mean_colour_psnr": 14.0},
)


def workdir_with(tmp_path, lines=LINES):
    content = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / METRICS_FILE).write_text(content)
    return tmp_path


def points_of(figure):
    """Return the points of each line, by panel and label."""
    return {
        (panel.get_title(), line.get_label()): line.get_xydata()
        for panel in figure.axes
        for line in panel.lines
    }


def test_metrics_are_drawn(tmp_path):
    lines = points_of(draw_curves({"": read_metrics(workdir_with(tmp_path))}, PANELS))
    held_out = lines["hole PSNR, dB", "held-out"]
    np.testing.assert_array_equal(held_out, [[0, 9.5], [40, 12.5]])
    adversarial = lines["generator's losses", "adversarial"]
    np.testing.assert_array_equal(adversarial, [[20, 0.7], [40, np.nan]])
    assert ("generator's losses", "L1") not in lines


def test_runs_have_their_own_colours(tmp_path):
    points = read_metrics(workdir_with(tmp_path))
    figure = draw_curves({"one": points, "two": points}, PANELS)
    lines = points_of(figure)
    r1 = "R1 before its weight"
    assert {(r1, "one: R1"), (r1, "two: R1")} <= lines.keys()
    (panel,) = (axes for axes in figure.axes if axes.get_title() == r1)
    assert len({line.get_color() for line in panel.lines}) == 2


def test_families_have_their_own_panels(tmp_path):
    points = read_metrics(workdir_with(tmp_path))
    own = (Panel("rates", (("d/r1", "R1", "-"),)), Panel("more", ()))
    figure = draw_curves({"": points}, own)
    titles = [axes.get_title() for axes in figure.axes if axes.axison]
    assert titles == ["hole PSNR, dB", "rates", "more"]
    rates = points_of(figure)["rates", "R1"]
    np.testing.assert_array_equal(rates, [[20, 0.5], [40, 0.25]])


def test_curves_in_the_workdir(tmp_path):
    path = save_curves(workdir_with(tmp_path), PANELS)
    image = np.asarray(Image.open(path).convert("RGB"))
    assert path.parent == tmp_path and len(np.unique(image.reshape(-1, 3))) > 50
    save_curves(workdir_with(tmp_path, LINES[:1]), PANELS)  # most panels are empty
    assert path.read_bytes() != b"" and not np.array_equal(
        np.asarray(Image.open(path).convert("RGB")), image
    )

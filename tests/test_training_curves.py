"""Curves of a run, drawn from what it has reported."""

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


def drawn(figure):
    """Lines by panel and label: their points."""
    return {
        (panel.get_title(), line.get_label()): line.get_xydata()
        for panel in figure.axes
        for line in panel.lines
    }


def test_what_is_reported_is_drawn(tmp_path):
    lines = drawn(draw_curves({"": read_metrics(workdir_with(tmp_path))}, PANELS))
    held_out = lines["hole PSNR, dB", "held-out"]
    np.testing.assert_array_equal(held_out, [[0, 9.5], [40, 12.5]])
    adversarial = lines["generator's losses", "adversarial"]
    np.testing.assert_array_equal(adversarial, [[20, 0.7], [40, np.nan]])
    assert ("generator's losses", "L1") not in lines


def test_runs_are_told_apart(tmp_path):
    points = read_metrics(workdir_with(tmp_path))
    figure = draw_curves({"one": points, "two": points}, PANELS)
    lines = drawn(figure)
    r1 = "R1 before its weight"
    assert {(r1, "one: R1"), (r1, "two: R1")} <= lines.keys()
    (panel,) = (axes for axes in figure.axes if axes.get_title() == r1)
    assert len({line.get_color() for line in panel.lines}) == 2


def test_a_family_has_panels_of_its_own(tmp_path):
    points = read_metrics(workdir_with(tmp_path))
    own = (Panel("rates", (("d/r1", "R1", "-"),)), Panel("more", ()))
    figure = draw_curves({"": points}, own)
    titles = [axes.get_title() for axes in figure.axes if axes.axison]
    assert titles == ["hole PSNR, dB", "rates", "more"]
    np.testing.assert_array_equal(drawn(figure)["rates", "R1"], [[20, 0.5], [40, 0.25]])


def test_a_picture_in_the_workdir(tmp_path):
    path = save_curves(workdir_with(tmp_path), PANELS)
    picture = np.asarray(Image.open(path).convert("RGB"))
    assert path.parent == tmp_path and len(np.unique(picture.reshape(-1, 3))) > 50
    save_curves(workdir_with(tmp_path, LINES[:1]), PANELS)  # most panels are empty
    assert path.read_bytes() != b"" and not np.array_equal(
        np.asarray(Image.open(path).convert("RGB")), picture
    )

"""Figures as people read them: a table, and a page with plots and pictures."""

import base64
import html
import json
import math
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from migan_jax.data.sheets import with_hole
from migan_jax.metrics.evaluator import Fill
from migan_jax.metrics.table import MORE
from migan_jax.metrics.test_set import TestSet

PLOTTED = "hole_psnr", "hole_ssim", "hole_l1", "fid"  # those that are there
FIRST = 6  # pictures of the gallery's beginning

STYLE = """
body { font: 15px/1.5 sans-serif; max-width: 75em; margin: 2em auto; }
table { border-collapse: collapse; }
td, th { padding: .2em .8em; text-align: right; }
td:first-child, th:first-child { text-align: left; }
th { border-bottom: 1px solid #888; }
img { max-width: 100%; } .row img { width: 100%; max-width: 320px; }
small { color: #555; font-weight: normal; }
.row { display: flex; gap: 4px; margin-bottom: 4px; }
.row figure { margin: 0; flex: 1; } figcaption { font-size: 80%; color: #555; }
pre { background: #f4f4f4; padding: 1em; overflow: auto; } .best { font-weight: bold; }
"""


def markdown(result: Mapping[str, Any]) -> str:
    """All methods side by side, and under them how they were measured."""
    header, rows = table_of(result)
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    texts = [[text.replace("|", r"\|") for text, _ in row] for row in rows]
    lines += [f"| {' | '.join(row)} |" for row in texts]
    protocol = result["protocol"]
    return "\n".join([*lines, "", summary_of(protocol), ""])


def summary_of(protocol: Mapping[str, Any]) -> str:
    holes = "own masks"
    if drawn := protocol["drawn_masks"]:
        holes = f"{drawn['kind']} masks of seed {drawn['seed']}"
    return (
        f"{protocol['pictures']['count']:,} pictures at {protocol['resolution']} "
        f"pixels, {holes} (sha256 {protocol['holes'][:12]}); "
        f"protocol {protocol['hash'][:12]}. In brackets: 95 % of bootstrap samples."
    )


def table_of(
    result: Mapping[str, Any],
) -> tuple[list[str], list[list[tuple[str, bool]]]]:
    """Titles; and rows of cells, each with whether it is the best of its column."""
    methods = result["methods"]
    names = list(next(iter(methods.values()))["metrics"])
    rows = [[(_label(*method), False)] for method in methods.items()]
    for name in names:
        values = [content["metrics"][name]["value"] for content in methods.values()]
        said = [value for value in values if value is not None]
        choose = max if name.startswith(MORE) else min
        best = choose(said) if said else None
        for row, content in zip(rows, methods.values(), strict=True):
            metric = content["metrics"][name]
            row.append((cell(metric), metric["value"] == best))
    arrows = ["↑" if name.startswith(MORE) else "↓" for name in names]
    titles = [f"{name} {arrow}" for name, arrow in zip(names, arrows, strict=True)]
    return ["", *titles], rows


def _label(name: str, content: Mapping[str, Any]) -> str:
    """A method and the size that it was made for, if it was for one."""
    size = content.get("resolution")
    return name if size is None else f"{name}, {size} px"


def cell(metric: Mapping[str, float | None]) -> str:
    if metric["value"] is None:
        return "-"
    text = f"{metric['value']:.4g}"
    if metric.get("low") is not None:
        text += f" ({metric['low']:.4g} to {metric['high']:.4g})"
    return text


def without_nan(content: Any) -> Any:
    """For JSON, which knows neither NaN nor infinity: those become null."""
    if isinstance(content, Mapping):
        return {key: without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_nan(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content


def page(
    result: Mapping[str, Any], test_set: TestSet, fills: Mapping[str, Fill]
) -> str:
    """A page that needs no other file."""
    header, rows = table_of(result)
    titles = "".join(f"<th>{html.escape(title)}</th>" for title in header)
    body = "".join(
        f"<tr><td>{html.escape(row[0][0])}</td>"
        + "".join(
            f'<td class="{"best" if best else ""}">{_cell(text)}</td>'
            for text, best in row[1:]
        )
        + "</tr>"
        for row in rows
    )
    protocol = html.escape(json.dumps(result["protocol"], indent=1))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>Inpainting, measured</title><style>{STYLE}</style></head><body>"
        f"<h1>Inpainting, measured</h1><p>{html.escape(summary_of(result['protocol']))}"
        f"</p><table><tr>{titles}</tr>{body}</table><h2>By the hole's share</h2>"
        f'<img alt="figures by the hole\'s share" src="{_plots(result)}">'
        f"{_gallery(result, test_set, fills)}"
        f"<h2>Protocol</h2><pre>{protocol}</pre></body></html>\n"
    )


def _cell(text: str) -> str:
    """The interval on a line of its own."""
    value, bracket, interval = html.escape(text).partition(" (")
    return f"{value}<br><small>({interval}</small>" if bracket else value


def _plots(result: Mapping[str, Any]) -> str:
    from matplotlib.figure import Figure

    methods = result["methods"]
    measured = next(iter(methods.values()))["by_hole_ratio"][0]
    names = [name for name in PLOTTED if name in measured]
    figure = Figure(figsize=(4 * len(names), 3.6), layout="constrained")
    for panel, name in zip(figure.subplots(1, len(names)), names, strict=True):
        for method, content in methods.items():
            bins = [row for row in content["by_hole_ratio"] if row[name] is not None]
            middles = [(row["from"] + row["to"]) / 2 for row in bins]
            label = method.replace("$", r"\$")  # which begins formulas
            panel.plot(middles, [row[name] for row in bins], "o-", label=label)
        panel.set_title(name)
        panel.set_xlabel("hole's share of the picture")
        panel.set_xlim(0, 1)
        panel.grid(alpha=0.3)
    panel.legend(fontsize="small")
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return _as_link(buffer.getvalue(), "png")


def _gallery(
    result: Mapping[str, Any], test_set: TestSet, fills: Mapping[str, Fill]
) -> str:
    """The first pictures by every method; and the best and worst of each network."""
    first = range(min(FIRST, len(test_set)))
    parts = ["<h2>The first pictures</h2>"]
    parts += [_row(test_set, number, fills) for number in first]
    for name, content in result["methods"].items():
        if "weights" not in content:  # a classical fill
            continue
        for kind in ("best", "worst"):
            parts.append(f"<h2>{kind.title()} of {html.escape(name)}</h2>")
            only = {name: fills[name]}
            parts += [_row(test_set, number, only) for number in content[kind]]
    return "".join(parts)


def _row(test_set: TestSet, number: int, fills: Mapping[str, Fill]) -> str:
    """Input, completions and truth; with one completion, also where it differs."""
    name, truth, hole = test_set[number]
    shown = {"input": with_hole(truth, hole)}
    for method, fill in fills.items():
        result = fill(truth[None], hole[None])[0]
        shown[method] = result
        if len(fills) == 1:
            apart = np.abs(result.astype(np.int16) - truth)
            shown["difference"] = apart.astype(np.uint8)
    shown["truth"] = truth
    figures = "".join(
        f'<figure><img loading="lazy" alt="{html.escape(label)}" '
        f'src="{_picture(pixels)}"><figcaption>{html.escape(label)}</figcaption></figure>'
        for label, pixels in shown.items()
    )
    return f'<p>{html.escape(name)}</p><div class="row">{figures}</div>'


def _picture(pixels: np.ndarray) -> str:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=88)
    return _as_link(buffer.getvalue(), "jpeg")


def _as_link(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"

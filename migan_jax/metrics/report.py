"""Reports of an evaluation: a Markdown table, and a page with plots and images."""

import base64
import html
import json
import math
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from migan_jax.data.sheets import paint_hole
from migan_jax.metrics.evaluator import Fill
from migan_jax.metrics.table import HIGHER_IS_BETTER
from migan_jax.metrics.test_set import TestSet

PLOTTED = "hole_psnr", "hole_ssim", "hole_l1", "fid"  # where available
PLOTTED_BINS = {
    "by_hole_ratio": "By hole ratio, in steps of 20 %",
    "by_hole_ratio_10_to_50": "By hole ratio, from 10 to 50 % in steps of 10 %",
}
GALLERY_SIZE = 6  # images of each kind: first, best, worst

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


def format_markdown(result: Mapping[str, Any]) -> str:
    """Format all methods side by side, with the protocol below."""
    header, rows = format_table(result)
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    texts = [[text.replace("|", r"\|") for text, _ in row] for row in rows]
    lines += [f"| {' | '.join(row)} |" for row in texts]
    protocol = result["protocol"]
    return "\n".join([*lines, "", format_protocol(protocol), ""])


def format_protocol(protocol: Mapping[str, Any]) -> str:
    holes = "the images' own masks"
    if drawn := protocol["drawn_masks"]:
        holes = f"{drawn['kind']} masks of seed {drawn['seed']}"
    return (
        f"{protocol['pictures']['count']:,} images at {protocol['resolution']} "
        f"pixels, {holes} (sha256 {protocol['holes'][:12]}); "
        f"protocol {protocol['hash'][:12]}. In brackets: 95 % bootstrap intervals."
    )


def format_table(
    result: Mapping[str, Any],
) -> tuple[list[str], list[list[tuple[str, bool]]]]:
    """Return column titles, and rows of (cell, whether it is its column's best)."""
    methods = result["methods"]
    names = list(next(iter(methods.values()))["metrics"])
    rows = [[(_label(*method), False)] for method in methods.items()]
    for name in names:
        values = [content["metrics"][name]["value"] for content in methods.values()]
        finite = [value for value in values if value is not None]
        choose = max if name.startswith(HIGHER_IS_BETTER) else min
        best = choose(finite) if finite else None
        for row, content in zip(rows, methods.values(), strict=True):
            metric = content["metrics"][name]
            row.append((format_value(metric), metric["value"] == best))
    arrows = ["↑" if name.startswith(HIGHER_IS_BETTER) else "↓" for name in names]
    titles = [f"{name} {arrow}" for name, arrow in zip(names, arrows, strict=True)]
    return ["", *titles], rows


def _label(name: str, content: Mapping[str, Any]) -> str:
    """Return a method's name with its resolution, if it has one."""
    size = content.get("resolution")
    return name if size is None else f"{name}, {size} px"


def format_value(metric: Mapping[str, float | None]) -> str:
    if metric["value"] is None:
        return "-"
    text = f"{metric['value']:.4g}"
    if metric.get("low") is not None:
        text += f" ({metric['low']:.4g} to {metric['high']:.4g})"
    return text


def replace_nan(content: Any) -> Any:
    """Replace NaN and infinity by None: JSON has neither."""
    if isinstance(content, Mapping):
        return {key: replace_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [replace_nan(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content


def format_html(
    result: Mapping[str, Any], test_set: TestSet, fills: Mapping[str, Fill]
) -> str:
    """Format a page that needs no other file."""
    header, rows = format_table(result)
    titles = "".join(f"<th>{html.escape(title)}</th>" for title in header)
    body = "".join(
        f"<tr><td>{html.escape(row[0][0])}</td>"
        + "".join(
            f'<td class="{"best" if best else ""}">{_format_cell(text)}</td>'
            for text, best in row[1:]
        )
        + "</tr>"
        for row in rows
    )
    summary = html.escape(format_protocol(result["protocol"]))
    protocol = html.escape(json.dumps(result["protocol"], indent=1))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>Inpainting evaluation</title><style>{STYLE}</style></head><body>"
        f"<h1>Inpainting evaluation</h1><p>{summary}</p>"
        f"<table><tr>{titles}</tr>{body}</table>"
        f"{_format_plots(result)}"
        f"{_format_gallery(result, test_set, fills)}"
        f"<h2>Protocol</h2><pre>{protocol}</pre></body></html>\n"
    )


def _format_cell(text: str) -> str:
    """Put the interval on its own line."""
    value, bracket, interval = html.escape(text).partition(" (")
    return f"{value}<br><small>({interval}</small>" if bracket else value


def _format_plots(result: Mapping[str, Any]) -> str:
    """Plot metrics by hole ratio, for both sets of bins if they have images."""
    parts = []
    for key, title in PLOTTED_BINS.items():
        if next(iter(result["methods"].values()))[key]:
            parts.append(
                f'<h2>{title}</h2><img alt="{title}" src="{_plot(result, key)}">'
            )
    return "".join(parts)


def _plot(result: Mapping[str, Any], bins_key: str) -> str:
    from matplotlib.figure import Figure

    methods = result["methods"]
    available = next(iter(methods.values()))[bins_key][0]
    names = [name for name in PLOTTED if name in available]
    figure = Figure(figsize=(4 * len(names), 3.6), layout="constrained")
    for panel, name in zip(figure.subplots(1, len(names)), names, strict=True):
        for method, content in methods.items():
            bins = [row for row in content[bins_key] if row[name] is not None]
            middles = [(row["from"] + row["to"]) / 2 for row in bins]
            label = method.replace("$", r"\$")  # else matplotlib parses a formula
            panel.plot(middles, [row[name] for row in bins], "o-", label=label)
        panel.set_title(name)
        panel.set_xlabel("hole ratio")
        panel.set_xlim(0, 1)
        panel.grid(alpha=0.3)
    panel.legend(fontsize="small")
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return _data_url(buffer.getvalue(), "png")


def _format_gallery(
    result: Mapping[str, Any], test_set: TestSet, fills: Mapping[str, Fill]
) -> str:
    """Show the first images by every method, and each network's best and worst."""
    first = range(min(GALLERY_SIZE, len(test_set)))
    parts = ["<h2>The first images</h2>"]
    parts += [_format_row(test_set, index, fills) for index in first]
    for name, content in result["methods"].items():
        if "weights" not in content:  # a classical fill
            continue
        for kind in ("best", "worst"):
            parts.append(f"<h2>{kind.title()} of {html.escape(name)}</h2>")
            fill = {name: fills[name]}
            parts += [_format_row(test_set, index, fill) for index in content[kind]]
    return "".join(parts)


def _format_row(test_set: TestSet, index: int, fills: Mapping[str, Fill]) -> str:
    """Show input, completions and truth; for a single method also the difference."""
    name, truth, hole = test_set[index]
    images = {"input": paint_hole(truth, hole)}
    for method, fill in fills.items():
        result = fill(truth[None], hole[None])[0]
        images[method] = result
        if len(fills) == 1:
            difference = np.abs(result.astype(np.int16) - truth)
            images["difference"] = difference.astype(np.uint8)
    images["truth"] = truth
    panels = "".join(
        f'<figure><img loading="lazy" alt="{html.escape(label)}" '
        f'src="{_encode_jpeg(pixels)}"><figcaption>{html.escape(label)}</figcaption></figure>'
        for label, pixels in images.items()
    )
    return f'<p>{html.escape(name)}</p><div class="row">{panels}</div>'


def _encode_jpeg(pixels: np.ndarray) -> str:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=88)
    return _data_url(buffer.getvalue(), "jpeg")


def _data_url(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"

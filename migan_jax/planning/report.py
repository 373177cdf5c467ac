"""Plans as text, as a table and as a picture."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from migan_jax.files import readable_size
from migan_jax.planning.estimate import Estimate, OpCost
from migan_jax.planning.plans import Plan, StagePlan

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_GROUPS = 12  # of ops, in a report
LEFT_OUT = "without latencies, overlap and the host"


def describe(plan: Plan, price: float | None) -> list[str]:
    """Describe a plan, per device.

    Args:
      price: of a chip for an hour.
    """
    data, space = plan.mesh
    sharing = f", {space} share an image by rows" if space > 1 else ""
    lines = [
        f"{plan.recipe} {' '.join(plan.settings)}".rstrip() + f" on {plan.topology}",
        f"  {plan.chips:,} {plan.chip}, mesh {data} x {space}{sharing}; batch "
        f"{plan.batch_size}, {plan.resolution} px, {plan.dtype}",
        "  on each device: "
        + ", ".join(f"{name} {readable_size(n)}" for name, n in plan.state.items()),
    ]
    if plan.stages and not plan.has_compiler_time:
        lines.append(
            "  compiled without autotuning; times are floors, which no GPU reaches"
        )
    for stage in plan.stages:
        lines += _describe_stage(stage)
    if plan.stages:
        lines += _describe_run(plan, price)
    return [*lines, _verdict(plan)]


def _describe_stage(stage: StagePlan) -> list[str]:
    lines = [f"  stage {stage.name}: {stage.steps:,} steps"]
    for every, program in [(1, stage.step), *stage.lazy.items()]:
        lines += _describe_program(
            "step" if every == 1 else f"every {every} steps", program
        )
    return lines


def _describe_program(name: str, program: Estimate) -> list[str]:
    total, memory = program.total, program.memory
    kind = "compiler's estimate" if program.has_compiler_time else "floor"
    lines = [
        f"  {name}: {_ms(total.seconds)} ms ({kind}, {LEFT_OUT})",
        f"    {total.flops / 1e9:,.0f} GFLOP, {total.hbm_bytes / 1e9:,.2f} GB of "
        f"memory traffic, {total.ops:,} operations",
        f"    roofline: compute {_ms(program.compute_seconds)}, HBM "
        f"{_ms(program.hbm_seconds)}, interconnect {_ms(program.link_seconds)} ms; "
        f"bound by {program.bound}",
        f"    memory: peak {readable_size(memory.peak)}, of which activations "
        f"{readable_size(memory.activations)}, program {readable_size(memory.code)}",
    ]
    if program.exchanges:
        lines.append("    collectives (at the links' bandwidth, on a torus):")
    lines += [
        f"      {one.kind:<20}{one.dtype:<6}{one.times:>5}x, "
        f"{one.async_times:>3} asynchronous{one.bytes / 1e6:>10.3f} MB"
        f"{_ms(one.seconds):>8} ms  {one.purpose}"
        for one in program.exchanges
    ]
    if program.gradient_bytes:
        lines.append(
            f"      neither gradients, halos nor gathers: "
            f"{program.other_bytes / 1e6:.3f} MB, {_other(program)} of the gradients"
        )
    for title, groups in (
        ("by part", program.by_part),
        ("by kind of operation", program.by_kind),
    ):
        lines.append(f"    {title}:")
        for group, cost in _largest(program, groups):
            line = f"      {group:<38}{_ms(cost.seconds):>9} ms"
            if program.has_compiler_time:
                line += f", floor{_ms(cost.floor_seconds):>8}"
            lines.append(f"{line}{cost.hbm_bytes / 1e9:>9.3f} GB")
    return lines


def _other(program: Estimate) -> str:
    """Return bytes of collectives of no known purpose, as a fraction of gradients."""
    if not program.gradient_bytes:
        return "-"
    return f"{program.other_bytes / program.gradient_bytes:.1%}"


def _largest(
    program: Estimate, groups: dict[str, OpCost]
) -> Iterable[tuple[str, OpCost]]:
    """Yield the largest groups that together have nearly all of the time."""
    seconds = 0.0
    for name, cost in list(groups.items())[:MAX_GROUPS]:
        if seconds > 0.995 * program.total.seconds:
            break
        seconds += cost.seconds
        yield name, cost


def _describe_run(plan: Plan, price: float | None) -> list[str]:
    ms = ", ".join(
        f"{_ms(stage.compute_seconds)} + {_ms(stage.link_seconds)} ms of collectives"
        for stage in plan.stages
    )
    cost = f", {plan.chip_hours * price:,.0f} at {price:g} a chip-hour" if price else ""
    most, least = ("", "") if plan.has_compiler_time else ("at most ", "at least ")
    return [
        f"  mean step, lazy turns included: {ms}, if nothing overlaps",
        f"  {most}{plan.images_per_second:,.0f} images/s; the run takes {least}"
        f"{_duration(plan.days)}, {plan.chip_hours:,.0f} chip-hours{cost}",
    ]


def _duration(days: float) -> str:
    if days < 1 / 24:
        return f"{1440 * days:.1f} minutes"
    return f"{days:.1f} days" if days >= 2 else f"{24 * days:.1f} hours"


def _verdict(plan: Plan) -> str:
    available = readable_size(plan.available)
    if plan.fits:
        return (
            f"  verdict: fits; {readable_size(plan.peak_bytes)} of {available} "
            f"({plan.peak_bytes / plan.available:.0%})"
        )
    *hints, last = _hints(plan)
    return (
        f"  verdict: does not fit; {readable_size(plan.missing)} more than "
        f"{available}. Try {', '.join(hints)} or {last}"
    )


def _hints(plan: Plan) -> list[str]:
    """Return what saves memory and is not in use, the cheapest first."""
    data, space = plan.mesh
    rows = plan.resolution / (2 * space)
    alternatives = {
        "networks.dtype=bfloat16": plan.dtype == "float32",
        f"microbatches={2 * plan.microbatches}": True,
        "networks.remat=true": not plan.remat,
        f"mesh.space={2 * space}": data % 2 == 0 and rows % 2 == 0,
        "more chips": plan.chips > 1,
        "a smaller batch_size": True,
    }
    return [hint for hint, is_useful in alternatives.items() if is_useful]


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.2f}"


# Several plans.


def row(plan: Plan, price: float | None = None) -> dict[str, str]:
    """Return a plan's row of the table, by column."""
    data, space = plan.mesh
    cells = {
        "recipe": " ".join([plan.recipe, *plan.settings]),
        "topology": plan.topology,
        "batch": str(plan.batch_size),
        "mesh": f"{data} x {space}",
        "dtype": plan.dtype,
        **dict.fromkeys(("step, ms", "lazy turns, ms", "collectives, ms"), "-"),
        **dict.fromkeys(("other / gradients", "images/s"), "-"),
        "peak, GB": f"{plan.peak_bytes / 1e9:.1f} of {plan.available / 1e9:.1f}",
        **dict.fromkeys(("run", "chip-hours"), "-"),
    }
    if plan.stages:
        main = plan.stages[-1]
        step = main.step.total.seconds
        most, least = ("", "") if plan.has_compiler_time else ("< ", "> ")
        cells |= {
            "step, ms": least + _ms(step),
            "lazy turns, ms": least + _ms(main.compute_seconds - step),
            "collectives, ms": _ms(main.link_seconds),
            "other / gradients": _other(main.step),
            "images/s": f"{most}{plan.images_per_second:,.0f}",
            "run": least + _duration(plan.days),
            "chip-hours": f"{least}{plan.chip_hours:,.0f}",
        }
    if price:
        cells["cost"] = f"{plan.chip_hours * price:,.0f}" if plan.stages else "-"
    return cells | {"verdict": "fits" if plan.fits else "does not fit"}


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return a Markdown table of rows with the same columns."""
    heads = list(rows[0])
    lines = [heads, ["---"] * len(heads), *(list(cells.values()) for cells in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def draw(plans: Sequence[Plan]) -> "Figure":
    """Draw the last stage's mean step by part, and the memory, of each plan."""
    from matplotlib.figure import Figure  # pyplot would open windows

    height = 1.8 + 0.45 * len(plans)
    figure = Figure(figsize=(12, height), layout="constrained")
    times, memory = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    labels = [f"{plan.topology}, batch {plan.batch_size}" for plan in plans]
    seconds = [_parts(plan.stages[-1]) if plan.stages else {} for plan in plans]
    left = [0.0] * len(plans)
    rows = range(len(plans))
    for index, part in enumerate(dict.fromkeys(n for one in seconds for n in one)):
        widths = [1e3 * one.get(part, 0) for one in seconds]
        hatch = "//" if index >= 10 else ""  # there are ten colours
        times.barh(rows, widths, left=left, label=part, hatch=hatch)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    times.set_yticks(rows, labels)
    times.invert_yaxis()
    times.set_xlabel("mean step, ms, if nothing overlaps")
    figure.legend(fontsize="small", ncols=4, loc="outside lower center")
    peaks = [plan.peak_bytes / plan.available * 100 for plan in plans]
    memory.barh(rows, peaks)
    memory.set_xlim(0, max(100, *peaks))
    memory.set_xlabel("peak memory, % of the device's")
    return figure


def _parts(stage: StagePlan) -> dict[str, float]:
    """Return seconds of a mean step by part, the largest first."""
    seconds: dict[str, float] = {}
    for every, program in [(1, stage.step), *stage.lazy.items()]:
        for name, cost in program.by_part.items():
            seconds[name] = seconds.get(name, 0.0) + cost.seconds / every
    rest = sum(s for s in seconds.values() if s < 0.01 * stage.seconds)
    large = {n: s for n, s in seconds.items() if s >= 0.01 * stage.seconds}
    ordered = dict(sorted(large.items(), key=lambda item: -item[1]))
    return ordered | {"the rest": rest, "collectives": stage.link_seconds}

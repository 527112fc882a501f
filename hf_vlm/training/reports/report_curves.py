"""Charts of values by step as inline SVG: axes, ticks, lines; every value as a tooltip and in a table."""

import html
import math
from collections.abc import Mapping, Sequence

from hf_vlm.training.reports.run_history import Chart, Line

_WIDTH, _HEIGHT = 440, 230  # units of the picture, about px on a wide screen
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 40  # margins
_NUM_TICKS = 5
_MAX_DRAWN, _MAX_TOLD = 2000, 300  # points of a line; tooltips, and rows of a table
_FEW = 40  # points that are drawn as dots, too
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "12 4", "4 2 1 2")
NUM_COLOURS = len(_DASHES)


def curve_figure(chart: Chart, kinds: Mapping[str, int]) -> str:
    """A chart as an HTML `figure`; of many points some are left out of picture and table, which is told.

    Args:
        kinds: name of a line -> a number, which its colour and dashes go by.
    """
    title = html.escape(chart.title)
    lines = [line for line in chart.lines if line.steps]
    notes = [
        f"{html.escape(line.name)}: {line.num_left_out} values that are no numbers are left out."
        for line in chart.lines
        if line.num_left_out
    ]
    if not lines:
        return f'<figure class="chart"><figcaption><h3>{title}</h3></figcaption><p>{" ".join(notes)}</p></figure>'
    legend = "".join(
        f"<li>{_swatch(kinds[line.name] % NUM_COLOURS)} {html.escape(line.name)}: <b>{number_text(line.values[-1])}</b>"
        f" at step {line.steps[-1]:,}"
        f"{_lowest(line)}</li>"
        for line in lines
    )
    told = "".join(f"<p>{note}</p>" for note in notes)
    return (
        f'<figure class="chart"><figcaption><h3>{title}</h3><ul class="legend">{legend}</ul></figcaption>'
        f"{_picture(chart.title, lines, kinds)}{told}{_table(chart.title, lines)}</figure>"
    )


def number_text(value: float) -> str:
    """A number in at most four digits."""
    return f"{value:.4g}"


def ticks(low: float, high: float, number: int = _NUM_TICKS) -> list[float]:
    """About `number` round values in [low, high], steps of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    raw = (high - low) / number
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((factor * power for factor in (1, 2, 5, 10) if factor * power >= 0.8 * raw), 10 * power)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [count * step for count in range(first, last + 1)]


def value_range(values: Sequence[float]) -> tuple[float, float]:
    """Lowest and highest value of an axis: of the values, from 0 where that is near, never empty."""
    low, high = min(values), max(values)
    if 0 < low <= high / 2:
        low = 0.0
    if low == high:
        margin = abs(low) / 10 or 1.0
        return low - margin, high + margin
    return low, high


def thin_out(number: int, most: int) -> list[int]:
    """At most `most` places of `number`, evenly, the first and the last among them."""
    if number <= most:
        return list(range(number))
    return sorted({round(place * (number - 1) / (most - 1)) for place in range(most)})


def _lowest(line: Line) -> str:
    lowest = min(line.values)
    if len(line.values) < 2 or lowest == line.values[-1]:
        return ""
    return f", lowest {number_text(lowest)} at step {line.steps[line.values.index(lowest)]:,}"


def _swatch(kind: int) -> str:
    return (
        f'<svg class="swatch" viewBox="0 0 26 8" aria-hidden="true"><line class="line c{kind}" x1="1" y1="4" x2="25" y2="4" '
        f'stroke-dasharray="{_DASHES[kind]}"/></svg>'
    )


def _picture(title: str, lines: list[Line], kinds: Mapping[str, int]) -> str:
    steps = [step for line in lines for step in line.steps]
    left, right = (min(steps), max(steps)) if min(steps) < max(steps) else (min(steps) - 1, max(steps) + 1)
    low, high = value_range([value for line in lines for value in line.values])
    inner_width, inner_height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def x(step: float) -> float:
        return round(_LEFT + inner_width * (step - left) / (right - left), 2)

    def y(value: float) -> float:
        return round(_TOP + inner_height * (high - value) / (high - low), 2)

    parts = []
    for value in ticks(low, high):
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y(value)}" x2="{_WIDTH - _RIGHT}" y2="{y(value)}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y(value) + 4}" text-anchor="end">{number_text(value)}</text>')
    base = _HEIGHT - _BOTTOM
    for step in ticks(left, right):
        if step != round(step):
            continue  # there is no half step
        parts.append(f'<line class="axis" x1="{x(step)}" y1="{base}" x2="{x(step)}" y2="{base + 4}"/>')
        parts.append(f'<text x="{x(step)}" y="{base + 17}" text-anchor="middle">{step:,.0f}</text>')
    parts.append(f'<polyline class="axis" points="{_LEFT},{_TOP} {_LEFT},{base} {_WIDTH - _RIGHT},{base}"/>')
    parts.append(f'<text x="{_LEFT + inner_width / 2}" y="{_HEIGHT - 6}" text-anchor="middle">step</text>')
    for line in lines:
        kind = kinds[line.name] % NUM_COLOURS
        drawn = thin_out(len(line.steps), _MAX_DRAWN)
        points = " ".join(f"{x(line.steps[place])},{y(line.values[place])}" for place in drawn)
        parts.append(f'<polyline class="line c{kind}" stroke-dasharray="{_DASHES[kind]}" points="{points}"/>')
        shape = f"dot c{kind}" if len(line.steps) <= _FEW else "spot"
        for place in thin_out(len(line.steps), _MAX_TOLD):
            step, value = line.steps[place], line.values[place]
            parts.append(
                f'<circle class="{shape}" cx="{x(step)}" cy="{y(value)}" r="{3 if shape != "spot" else 5}"><title>'
                f"{html.escape(line.name)}, step {step}: {value!r}</title></circle>"
            )
    told = "; ".join(
        f"{line.name} from {number_text(line.values[0])} at step {line.steps[0]} to {number_text(line.values[-1])} at step "
        f"{line.steps[-1]}"
        for line in lines
    )
    label = html.escape(f"{title} by step: {told}.")
    return f'<svg class="plot" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _table(title: str, lines: list[Line]) -> str:
    by_step: dict[int, dict[int, float]] = {}
    for number, line in enumerate(lines):
        for step, value in zip(line.steps, line.values, strict=True):
            by_step.setdefault(step, {})[number] = value
    steps = sorted(by_step)
    kept = [steps[place] for place in thin_out(len(steps), _MAX_TOLD)]
    head = "".join(f'<th scope="col">{html.escape(line.name)}</th>' for line in lines)
    rows = "".join(
        f'<tr><th scope="row">{step}</th>'
        + "".join(f"<td>{by_step[step].get(number, '')!s}</td>" for number in range(len(lines)))
        + "</tr>"
        for step in kept
    )
    some = f" ({len(kept)} of {len(steps)} steps)" if len(kept) < len(steps) else ""
    return (
        f'<details><summary>numbers{some}</summary><div class="scroll" tabindex="0"><table><caption>{html.escape(title)}'
        f'</caption><thead><tr><th scope="col">step</th>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>'
    )

# SPDX-License-Identifier: Apache-2.0
"""Plots as SVG text, for pages that must open anywhere: lines, bars and a strip of states."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 900, 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 10, 24
_COLUMNS = 700
COLOURS = ("#2f6fde", "#d98a1c", "#16a394", "#d2453b", "#8559c9", "#5f7183", "#2c9a57")


def line_plot(
    x: NDArray[np.float64],
    lines: Mapping[str, NDArray[np.float64]],
    unit: str,
    level: float | None = None,
    floor: float | None = 0.0,
) -> str:
    """Lines over time (x, in s). NaN values leave a hole. level: a dashed line across. floor: shown whatever the values
    (None: the axis spans the values alone). Long lines keep the least and the greatest value of every column, so that
    no peak is lost."""
    known = [values[np.isfinite(values)] for values in lines.values()]
    values = np.concatenate([*known, [] if level is None else [level]])
    if not len(x) or not len(values):
        return '<p class="none">nothing was recorded</p>'
    low, high = float(values.min()), float(values.max())
    low = low if floor is None else min(low, floor)
    high = high if high > low else low + 1
    decimals = max(0, math.ceil(-math.log10(high - low)) + 1)
    span = float(x[-1] - x[0]) or 1.0
    across = WIDTH - _LEFT - _RIGHT
    down = HEIGHT - _TOP - _BOTTOM

    def px(at: NDArray[np.float64] | float) -> NDArray[np.float64]:
        return _LEFT + (np.asarray(at) - x[0]) / span * across

    def py(at: NDArray[np.float64] | float) -> NDArray[np.float64]:
        return _TOP + (high - np.asarray(at)) / (high - low) * down

    parts = [f'<div class="plot"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">']
    for share in (0.0, 0.5, 1.0):
        value = low + share * (high - low)
        y = float(py(value))
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/><text x="{_LEFT - 6}" '
            f'y="{y + 4:.1f}" text-anchor="end">{value:.{decimals}f}</text>'
        )
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        parts.append(
            f'<text x="{_LEFT + share * across:.0f}" y="{HEIGHT - 6}" '
            f'text-anchor="{anchor}">{x[0] + share * span:.4g} {"s" if share == 1 else ""}</text>'
        )
    if level is not None:
        parts.append(
            f'<line class="level" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{float(py(level)):.1f}" '
            f'y2="{float(py(level)):.1f}"/>'
        )
    for colour, series in zip(COLOURS * 2, lines.values()):
        shown_x, shown_y = _thinned(x, series)
        whole = np.isfinite(shown_y)
        points, pen = [], "M"
        for at, value, good in zip(px(shown_x), py(np.where(whole, shown_y, 0)), whole):
            if good:
                points.append(f"{pen}{at:.1f} {value:.1f}")
            pen = "L" if good else "M"
        parts.append(f'<path d="{"".join(points)}" stroke="{colour}"/>')
        if len(series) < 120:
            parts += [
                f'<circle cx="{px(at):.1f}" cy="{py(value):.1f}" r="2" fill="{colour}"/>'
                for at, value in zip(shown_x[whole], shown_y[whole])
            ]
    parts.append("</svg></div>")
    return "".join(parts) + _legend(lines, unit)


def bar_plot(counts: Mapping[str, float], unit: str) -> str:
    """One bar a name, longest first."""
    entries = sorted(((name, value) for name, value in counts.items() if value), key=lambda entry: -entry[1])
    if not entries:
        return '<p class="none">none</p>'
    most = entries[0][1]
    rows = "".join(
        f'<div class="bar"><span>{escape(name.replace("_", " "))}</span><i><b '
        f'style="width:{100 * value / most:.1f}%"></b></i><em>{value:g} {escape(unit)}</em></div>'
        for name, value in entries
    )
    return f'<div class="bars">{rows}</div>'


def state_strip(x: NDArray[np.float64], states: Sequence[str], colours: Mapping[str, str], ends: float) -> str:
    """States over time as a strip; `ends` is where the last one ends."""
    if not len(x):
        return '<p class="none">nothing was recorded</p>'
    span = float(ends - x[0]) or 1.0
    across = WIDTH - _LEFT - _RIGHT
    parts = [f'<div class="plot"><svg viewBox="0 0 {WIDTH} 26" role="img">']
    begin = 0
    for index in range(1, len(states) + 1):
        if index == len(states) or states[index] != states[begin]:
            left = float(x[begin])
            right = float(x[index]) if index < len(states) else ends
            at, wide = _LEFT + (left - x[0]) / span * across, (right - left) / span * across
            parts.append(
                f'<rect x="{at:.1f}" width="{max(0.5, wide):.1f}" y="2" height="22" '
                f'fill="{colours[states[begin]]}"><title>{escape(states[begin])} {right - left:.2f} s</title></rect>'
            )
            begin = index
    parts.append("</svg></div>")
    shown = {name: np.zeros(0) for name in colours if name in states}
    return "".join(parts) + _legend(shown, "", [colours[name] for name in shown])


def _thinned(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if len(x) <= 2 * _COLUMNS:
        return x, y
    kept: list[int] = []
    for part in np.array_split(np.arange(len(x)), _COLUMNS):
        finite = part[np.isfinite(y[part])]
        ends = {finite[np.argmin(y[finite])], finite[np.argmax(y[finite])]} if len(finite) else {part[0]}
        kept += sorted(map(int, ends))
    return x[kept], y[kept]


def _legend(lines: Mapping[str, NDArray[np.float64]], unit: str, colours: Sequence[str] = COLOURS * 2) -> str:
    names = "".join(
        f'<span><i style="background:{colour}"></i>{escape(name)}</span>' for colour, name in zip(colours, lines)
    )
    return f'<div class="legend">{names}<em>{escape(unit)}</em></div>'

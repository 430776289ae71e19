# SPDX-License-Identifier: GPL-3.0-or-later
"""Small line charts as SVG: panels in a grid, every line with its target dashed. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#999999",
)  # fmt: skip
COLUMNS = 3
WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 38, 10, 26, 30
HEAD = 40


@dataclass(frozen=True)
class Line:
    """One series: (x, y) points in order, and the value it should have."""

    label: str
    points: Sequence[tuple[float, float]]
    target: float | None = None


@dataclass(frozen=True)
class Panel:
    """One chart; y goes from 0 to 100."""

    title: str
    lines: Sequence[Line]


def _at(panel_x: float, panel_y: float, x: float, y: float, span: float) -> tuple[float, float]:
    inner_width = WIDTH - LEFT - RIGHT
    inner_height = HEIGHT - TOP - BOTTOM
    shown = min(max(y, 0.0), 100.0)
    return (
        panel_x + LEFT + inner_width * x / span,
        panel_y + TOP + inner_height * (1 - shown / 100),
    )


def _text(x: float, y: float, words: str, anchor: str = "start", size: int = 10) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">'
        f"{escape(words)}</text>"
    )


def _axes(x: float, y: float, span: float) -> list[str]:
    parts = []
    for percent in (0, 20, 40, 60, 80, 100):
        left, height = _at(x, y, 0, percent, span)
        right, _ = _at(x, y, span, percent, span)
        parts.append(
            f'<line x1="{left:.1f}" y1="{height:.1f}" x2="{right:.1f}" y2="{height:.1f}" '
            'stroke="#dddddd"/>'
        )
        parts.append(_text(left - 4, height + 3, str(percent), "end", 9))
    for fraction in (0.0, 0.5, 1.0):
        across, bottom = _at(x, y, span * fraction, 0, span)
        parts.append(_text(across, bottom + 12, f"{span * fraction:.0f} s", "middle", 9))
    return parts


def _line(x: float, y: float, line: Line, colour: str, span: float) -> list[str]:
    drawn = [_at(x, y, *point, span) for point in line.points]
    coordinates = " ".join(f"{across:.1f},{down:.1f}" for across, down in drawn)
    parts = [f'<polyline points="{coordinates}" fill="none" stroke="{colour}"/>']
    if line.target is not None:
        left, height = _at(x, y, 0, line.target, span)
        right, _ = _at(x, y, span, line.target, span)
        parts.append(
            f'<line x1="{left:.1f}" y1="{height:.1f}" x2="{right:.1f}" y2="{height:.1f}" '
            f'stroke="{colour}" stroke-dasharray="2 3"/>'
        )
    return parts


def _panel(x: float, y: float, panel: Panel) -> list[str]:
    span = max((point[0] for line in panel.lines for point in line.points), default=0.0) or 1.0
    parts = [_text(x + LEFT, y + 14, panel.title, size=12), *_axes(x, y, span)]
    legend = x + LEFT
    for number, line in enumerate(panel.lines):
        colour = COLOURS[number % len(COLOURS)]
        parts += _line(x, y, line, colour, span)
        parts.append(f'<g fill="{colour}">{_text(legend, y + HEIGHT - 4, line.label, size=9)}</g>')
        legend += 6 + 5.2 * len(line.label)
    return parts


def chart(title: str, panels: Sequence[Panel]) -> str:
    """The whole picture."""
    rows = -(-len(panels) // COLUMNS)
    width, height = COLUMNS * WIDTH, HEAD + rows * HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        _text(10, 22, title, size=14),
    ]
    for number, panel in enumerate(panels):
        row, column = divmod(number, COLUMNS)
        parts += _panel(column * WIDTH, HEAD + row * HEIGHT, panel)
    return "\n".join([*parts, "</svg>", ""])

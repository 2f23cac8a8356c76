"""Draw curves as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

WIDTH, HEIGHT = 760, 440
LEFT, RIGHT, TOP, BOTTOM = 72, 24, 56, 62
#: Told apart also by those who don't see all colours (Okabe and Ito's), and by their dashes in print.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
DASHES = ("", "7 4", "2 3", "9 3 2 3", "4 4")

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Axis:
    """One axis: what it tells, its marks, and whether it is logarithmic. It reaches from the first mark to the last."""

    label: str
    marks: Sequence[tuple[float, str]]
    is_log: bool = False

    def share(self, value: float) -> float:
        """Where on the axis a value is, from 0 to 1."""
        first, last = self._scaled(self.marks[0][0]), self._scaled(self.marks[-1][0])
        return (self._scaled(value) - first) / ((last - first) or 1)

    def _scaled(self, value: float) -> float:
        return math.log(value) if self.is_log else value


def draw(path: Path, title: str, x: Axis, y: Axis, curves: Mapping[str, Points]) -> None:
    """Write a drawing of curves, by their names."""
    path.write_text("\n".join(_drawing(title, x, y, curves)) + "\n", encoding="utf-8")


def steps(most: float) -> list[tuple[float, str]]:
    """Return round marks of a linear axis from 0 on that reaches `most`."""
    magnitude = 10 ** math.floor(math.log10(most))
    step = next(size * magnitude for size in (0.2, 0.25, 0.5, 1, 2) if most / (size * magnitude) <= 6)
    return [(number * step, f"{number * step:,g}") for number in range(math.ceil(most / step) + 1)]


def decades(least: float, most: float) -> list[tuple[float, str]]:
    """Return round marks of a logarithmic axis from `least` or less to `most` or more."""
    values = [size * 10.0**power for power in range(-3, 7) for size in (1, 2, 5)]
    first = max(value for value in values if value <= least)
    last = min(value for value in values if value >= most)
    return [(value, f"{value:,g}") for value in values if first <= value <= last]


def _drawing(title: str, x: Axis, y: Axis, curves: Mapping[str, Points]) -> Iterator[str]:
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif" font-size="13" fill="#24292f">'
    )
    yield f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>'
    yield f'<text x="{LEFT}" y="26" font-size="16" font-weight="600">{escape(title)}</text>'
    yield from _axes(x, y)
    for number, points in enumerate(curves.values()):
        yield from _curve(number, [(_across(x, at), _down(y, value)) for at, value in points])
    yield from _legend(list(curves))
    yield "</svg>"


def _across(axis: Axis, value: float) -> float:
    return LEFT + axis.share(value) * (WIDTH - LEFT - RIGHT)


def _down(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - axis.share(value) * (HEIGHT - TOP - BOTTOM)


def _axes(x: Axis, y: Axis) -> Iterator[str]:
    bottom = HEIGHT - BOTTOM
    for value, label in y.marks:
        at = _down(y, value)
        yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="#d8dee4"/>'
        yield f'<text x="{LEFT - 10}" y="{at + 4.5:.1f}" text-anchor="end">{escape(label)}</text>'
    for value, label in x.marks:
        at = _across(x, value)
        yield f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{bottom}" y2="{bottom + 5}" stroke="#57606a"/>'
        yield f'<text x="{at:.1f}" y="{bottom + 21}" text-anchor="middle">{escape(label)}</text>'
    yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}" stroke="#57606a"/>'
    middle = (LEFT + WIDTH - RIGHT) / 2
    yield f'<text x="{middle}" y="{HEIGHT - 14}" text-anchor="middle">{escape(x.label)}</text>'
    middle = (TOP + bottom) / 2
    turn = f'transform="rotate(-90 20 {middle})"'
    yield f'<text x="20" y="{middle}" {turn} text-anchor="middle">{escape(y.label)}</text>'


def _curve(number: int, points: Points) -> Iterator[str]:
    colour, dashes = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
    path = " ".join(f"{across:.1f},{down:.1f}" for across, down in points)
    dashed = f'stroke-dasharray="{dashes}"' if dashes else 'stroke-linejoin="round"'
    yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.2" {dashed}/>'
    for across, down in points:
        yield f'<circle cx="{across:.1f}" cy="{down:.1f}" r="3.6" fill="#ffffff" stroke="{colour}" stroke-width="2"/>'


def _legend(names: Sequence[str]) -> Iterator[str]:
    if len(names) < 2:
        return
    height = 20 * len(names) + 12
    yield f'<rect x="{LEFT + 12}" y="{TOP + 4}" width="250" height="{height}" fill="#ffffff" opacity="0.9"/>'
    for number, name in enumerate(names):
        down = TOP + 20 + 20 * number
        yield from _curve(number, [(LEFT + 22, down), (LEFT + 54, down)])
        yield f'<text x="{LEFT + 66}" y="{down + 4.5}">{escape(name)}</text>'

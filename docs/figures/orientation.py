"""The sky image and one frame of a sequence, with the sense of rotation between them."""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Arc

ANGLE = 30.0  # derotation angle of the frame, degrees
PLANET = (17.0, 120.0)  # separation in pixels, position angle in degrees
HALF = 24


def offset(separation: float, position_angle: float) -> tuple[float, float]:
    """Offset (row, column) on the sky image."""
    angle = math.radians(position_angle)
    return separation * math.cos(angle), -separation * math.sin(angle)


def turned(row: float, column: float, degrees: float) -> tuple[float, float]:
    """The offset turned counter-clockwise as displayed: column axis towards row axis."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return sin * column + cos * row, cos * column - sin * row


def compass(ax: Axes, degrees: float) -> None:
    """North and East as they lie in an image of the sky that is turned by ``degrees``."""
    for name, position_angle in (("N", 0.0), ("E", 90.0)):
        row, column = turned(*offset(15.0, position_angle), degrees)
        ax.annotate("", (column, row), (0, 0), arrowprops={"arrowstyle": "->", "lw": 1.5})
        ax.text(1.15 * column, 1.15 * row, name, ha="center", va="center", weight="bold")


def curved_arrow(ax: Axes, radius: float, start: float, end: float) -> None:
    """An arc from ``start`` to ``end`` (degrees, from the column axis) with a head at its end."""
    low, high = min(start, end), max(start, end)
    ax.add_patch(Arc((0, 0), 2 * radius, 2 * radius, theta1=low, theta2=high, color="C3", lw=1.5))
    tip, before = (math.radians(a) for a in (end, end - math.copysign(6.0, end - start)))
    ax.annotate(
        "",
        (radius * math.cos(tip), radius * math.sin(tip)),
        (radius * math.cos(before), radius * math.sin(before)),
        arrowprops={"arrowstyle": "->", "color": "C3", "lw": 1.5},
    )


fig, (sky, frame) = plt.subplots(1, 2, figsize=(8.2, 4.6), layout="constrained", sharey=True)
row, column = offset(*PLANET)
sky.plot(column, row, "o", color="C0", ms=9)
sky.annotate("planet", (column, row), (0, -15), textcoords="offset points", ha="center", color="C0")
curved_arrow(sky, 7.0, 90.0, 90.0 + PLANET[1])
sky.text(-9.5, 8.0, "PA 120°", color="C3", ha="center")
compass(sky, 0.0)
sky.set_title("sky image: North up, East left")

row, column = turned(row, column, -ANGLE)
frame.plot(column, row, "o", color="C0", ms=9)
frame.annotate(
    "planet", (column, row), (0, -15), textcoords="offset points", ha="center", color="C0"
)
compass(frame, -ANGLE)
frame.plot([0, 0], [0, HALF], ":", color="0.6", lw=1)
curved_arrow(frame, 20.0, 90.0 - ANGLE, 90.0)
frame.text(8.0, 20.5, "+30°", color="C3", ha="center")
frame.set_title("frame whose derotation angle is +30°")

for ax in (sky, frame):
    ax.plot(0, 0, marker="*", color="k", ms=11)
    ax.set(xlim=(-HALF, HALF), ylim=(-HALF, HALF), aspect="equal")
    ax.set_xlabel("column − centre (pixels)")
sky.set_ylabel("row − centre (pixels)")

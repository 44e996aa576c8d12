"""shapes10: ten drawn shapes in colour, for tests and for machines with neither data nor network.

Only the outline tells the classes apart: place, size, turn, colours, background, a stray line and noise are drawn at
random for each image, independently of its class. The arithmetic is what IEEE 754 rounds exactly, with turns from
fractions instead of sines, so the pixels are the same on every machine; only the fixed directions of a polygon's sides
come from math.cos and math.sin, whose last bit may differ, far below one of the 256 steps of a pixel.
"""
from __future__ import annotations

import math

import numpy as np

SIZE = 32
CLASSES = ("disc", "ring", "square", "triangle", "star", "cross", "moon", "bars", "corner", "hourglass")
CHUNK = 500             # images drawn at once: few enough to stay in the processor's cache


def draw(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` images uint8 [N, 3, 32, 32] and their labels int64 [N], as equally many of each class as there can be."""
    random = np.random.RandomState(seed)                # RandomState: NumPy promises this stream for ever
    labels = random.permutation(np.arange(count) % len(CLASSES))
    parts = [_draw(part, random) for part in np.split(labels, range(CHUNK, count, CHUNK))]
    return np.concatenate(parts), labels.astype(np.int64)


def _draw(labels: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    n = len(labels)

    def between(low, high, *shape):
        return random.uniform(low, high, (n, *shape, 1, 1))

    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    radius = between(6, 11)
    u, v = _turn((x - between(11, 21)) / radius, (y - between(11, 21)) / radius, random)
    inside = np.empty((n, SIZE, SIZE))
    for label in range(len(CLASSES)):
        own = labels == label
        inside[own] = _distance(label, u[own], v[own])
    inside = _cover(inside * radius)

    across, along = _turn(x - between(6, 26), y - between(6, 26), random)
    wave = abs((across / between(8, 40)) % 2 - 1)[:, None]              # a zigzag from 0 to 1: a gradient, or stripes
    first, second = between(0, 1, 3), between(0, 1, 3)
    ground = first + (second - first) * wave * between(0, 0.6, 1)
    stray = _cover(np.minimum(1 - abs(along), 5 - abs(across)))[:, None]
    ground = ground + (between(0, 1, 3) - ground) * stray
    colour = (first + between(0.25, 0.75, 3)) % 1                       # a quarter or more from the ground's first colour
    image = ground + (colour - ground) * inside[:, None]
    grain = random.randint(-64, 65, (n, 3, SIZE, SIZE)) / 64 * between(0, 0.15, 1)
    return ((image + grain).clip(0, 1) * 255 + 0.5).astype(np.uint8)


def _turn(u: np.ndarray, v: np.ndarray, random: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """Points [N, 32, 32] turned by a random angle of their image's own."""
    t = random.uniform(-1, 1, (len(u), 1, 1))
    cos, sin = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)          # from -90 to 90 degrees, and then all the way round
    cos, sin = (side * random.choice([-1, 1], t.shape) for side in (cos, sin))
    return u * cos + v * sin, v * cos - u * sin


def _cover(distance: np.ndarray) -> np.ndarray:
    """How much of a pixel is covered, 0 … 1, from its distance to the edge in pixels: smooth edges."""
    return (distance + 0.5).clip(0, 1)


def _distance(label: int, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """How far points lie inside a shape of radius about 1, negative outside; u and v are the coordinates."""
    smaller, larger = np.minimum(abs(u), abs(v)), np.maximum(abs(u), abs(v))
    r = np.sqrt(u * u + v * v)

    def sides(count):               # how far a point lies beyond the middle of each side of a polygon, ascending
        angles = [2 * math.pi * k / count for k in range(count)]
        return np.sort([u * math.cos(a) + v * math.sin(a) for a in angles], axis=0)

    return {"disc": lambda: 0.85 - r,
            "ring": lambda: 0.2 - abs(r - 0.75),
            "square": lambda: 0.75 - larger,
            "triangle": lambda: 0.5 - sides(3)[-1],
            "star": lambda: 0.36 - sides(5)[-2],                        # beyond one side only: a point of the star
            "cross": lambda: np.minimum(0.25 - smaller, 0.95 - larger),
            "moon": lambda: np.minimum(0.95 - r, np.sqrt((u - 0.5) ** 2 + v * v) - 0.75),
            "bars": lambda: np.minimum(0.85 - larger, abs(v) - 0.3),
            "corner": lambda: np.minimum(0.8 - larger, np.maximum(-0.2 - u, v - 0.2)),
            "hourglass": lambda: np.minimum(0.85 - abs(v), 0.8 * (abs(v) - abs(u)) + 0.1)}[CLASSES[label]]()

"""Textured backgrounds: smooth noise, stripes, checks and gradients, drawn for many scenes at once."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

#: Kinds of background, drawn with equal chance.
KINDS = ("noise", "stripes", "checks", "gradient")

_OCTAVES = (3, 6, 12, 24)  # cells along a side of the value noise


def smooth_weights(size: int, cells: int) -> Floats:
    """Return the (size, cells + 1) matrix that enlarges a lattice of values smoothly to ``size`` pixels.

    Smoothstep between neighbouring lattice points (Perlin's fade curve of 1985); every row sums to 1.
    """
    place = (np.arange(size) + 0.5) / size * cells
    left = np.minimum(place.astype(np.int64), cells - 1)
    part = place - left
    part = part * part * (3 - 2 * part)
    weights = np.zeros((size, cells + 1), dtype=np.float32)
    weights[np.arange(size), left] = 1 - part
    weights[np.arange(size), left + 1] = part
    return weights


def _noise(rng: np.random.Generator, count: int, size: int) -> Floats:
    """Value noise: octaves of random lattices, each weaker than the last by a factor drawn per scene."""
    persistence = rng.uniform(0.35, 0.8, (count, 1, 1)).astype(np.float32)
    total = np.zeros((count, size, size), dtype=np.float32)
    for octave, cells in enumerate(_OCTAVES):
        lattice = rng.random((count, cells + 1, cells + 1), dtype=np.float32)
        weights = smooth_weights(size, cells)
        total += persistence**octave * (weights @ lattice @ weights.T)
    return total


def _waves(rng: np.random.Generator, count: int, size: int) -> tuple[Floats, Floats]:
    """Two perpendicular waves of one frequency per scene, from soft (sine) to hard (almost a step)."""
    angle = rng.uniform(0, math.pi, (count, 1, 1))
    turns = 2 * math.pi * rng.uniform(3.0, 8.0, (count, 1, 1))
    phase = rng.uniform(0, 2 * math.pi, (2, count, 1, 1))
    hardness = rng.uniform(0.5, 4.0, (count, 1, 1))
    y, x = np.meshgrid((np.arange(size) + 0.5) / size, (np.arange(size) + 0.5) / size, indexing="ij")
    along = np.tanh(hardness * np.sin(turns * (x * np.cos(angle) + y * np.sin(angle)) + phase[0]))
    across = np.tanh(hardness * np.sin(turns * (y * np.cos(angle) - x * np.sin(angle)) + phase[1]))
    return along.astype(np.float32), across.astype(np.float32)


def _gradient(rng: np.random.Generator, count: int, size: int) -> Floats:
    """Linear and radial gradients, mixed by a factor drawn per scene."""
    angle = rng.uniform(0, 2 * math.pi, (count, 1, 1))
    centre = rng.uniform(0, 1, (2, count, 1, 1))
    mix = rng.uniform(0, 1, (count, 1, 1))
    y, x = np.meshgrid((np.arange(size) + 0.5) / size, (np.arange(size) + 0.5) / size, indexing="ij")
    linear = x * np.cos(angle) + y * np.sin(angle)
    radial = np.hypot(y - centre[0], x - centre[1])
    return np.asarray(mix * linear + (1 - mix) * radial, dtype=np.float32)


def fields(rng: np.random.Generator, count: int, size: int) -> tuple[Floats, list[str]]:
    """Draw ``count`` scalar fields (count, size, size) float32 that span [0, 1] each, and their kinds."""
    kinds = rng.integers(len(KINDS), size=count)
    drawn = np.empty((count, size, size), dtype=np.float32)
    for index, kind in enumerate(KINDS):
        where = np.flatnonzero(kinds == index)
        if kind == "noise":
            drawn[where] = _noise(rng, len(where), size)
        elif kind == "gradient":
            drawn[where] = _gradient(rng, len(where), size)
        else:
            along, across = _waves(rng, len(where), size)
            drawn[where] = along if kind == "stripes" else along * across
    low = drawn.min(axis=(1, 2), keepdims=True)
    high = drawn.max(axis=(1, 2), keepdims=True)
    return (drawn - low) / (high - low), [KINDS[index] for index in kinds]

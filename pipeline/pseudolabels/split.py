"""Splits of images by a hash of their ids: the same in any order, on any machine, whatever else is in the dataset."""

from __future__ import annotations

from pipeline.pseudolabels.digests import digest


def place(image_id: str, seed: int) -> float:
    """Return where an image falls in [0, 1): evenly, by its id and the seed alone."""
    # 53 bits are what a float holds without rounding up to 1.
    return (digest(f"{seed}/{image_id}") >> 11) / 2**53


def is_drawn(image_id: str, fraction: float, seed: int) -> bool:
    """Say whether an image is among a share of all images."""
    return place(image_id, seed) < fraction

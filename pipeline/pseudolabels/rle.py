"""COCO's run-length codes of masks, and the connected components of a mask.

COCO counts down the columns (Fortran order), alternately outside and inside, beginning outside, and packs the counts
into ASCII. pycocotools packs; the counts of all labels of an image come from one pass here, because an image may fall
into thousands of components, and one call per mask would read every pixel for each.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.audit.regions.coco import uncompressed, unrun
from schemas.errors import InputError

Mask = npt.NDArray[np.bool_]

#: Pixels hang together by edges and corners, as in the audit.
_TOUCH = np.ones((3, 3), np.int8)


class Coded(NamedTuple):
    """A label's pixels: COCO's counts (None where they are not asked for), their number, and the box around them.

    ``box`` is (x0, y0, x1, y1), edges, so that ``x1 - x0`` is the width.
    """

    counts: str | None
    area: int
    box: tuple[int, int, int, int]


@cache
def _coco() -> Any:
    # Named by a string: what needs no codes needs no pycocotools.
    try:
        return importlib.import_module("pycocotools.mask")
    except ImportError as error:
        raise InputError(
            "run-length codes need pycocotools; install it (pip install 'camlake[labels]'), or set "
            "pseudo_labels.files.rle to none"
        ) from error


@cache
def _ndimage() -> Any:
    try:
        return importlib.import_module("scipy.ndimage")
    except ImportError as error:
        raise InputError(
            "connected components need scipy; install it (pip install 'camlake[labels]'), or set "
            "pseudo_labels.files.rle to class"
        ) from error


def require(mode: str) -> None:
    """Check that the libraries are there which a setting of ``pseudo_labels.files.rle`` needs.

    Raises:
        InputError: one is missing; the message names it and the remedy.
    """
    if mode != "none":
        _coco()
    if mode == "component":
        _ndimage()


def encode_labels(labels: npt.NDArray[np.integer[Any]], *, counts: bool = True) -> dict[int, Coded]:
    """Return code, area and box of each label of (H, W) that is not 0.

    Raises:
        InputError: pycocotools is missing, and ``counts`` are asked for.
    """
    height, width = labels.shape
    flat = labels.ravel(order="F")
    if not flat.any():
        return {}
    runs = _runs(flat, np.flatnonzero(flat[1:] != flat[:-1]) + 1)
    # Boxes need runs that end with their column.
    ends = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    columns = _runs(flat, np.union1d(ends, np.arange(1, width) * height))
    found: dict[int, Coded] = {}
    for (label, begin, end), (_, start, stop) in zip(_by_label(*runs), _by_label(*columns), strict=True):
        x, y = start // height, start % height
        box = (int(x.min()), int(y.min()), int(x.max()) + 1, int((y + stop - start).max()))
        code = _code(begin, end, height, width) if counts else None
        found[label] = Coded(code, int((end - begin).sum()), box)
    return found


def _runs(flat: npt.NDArray[Any], ends: npt.NDArray[np.intp]) -> tuple[npt.NDArray[Any], ...]:
    """Return label, begin and end of the runs between the places where one ends, without those of 0."""
    begin = np.concatenate([[0], ends])
    end = np.concatenate([ends, [len(flat)]])
    label = flat[begin]
    inside = label != 0
    return label[inside], begin[inside], end[inside]


def _by_label(
    label: npt.NDArray[Any], begin: npt.NDArray[np.intp], end: npt.NDArray[np.intp]
) -> list[tuple[int, npt.NDArray[np.intp], npt.NDArray[np.intp]]]:
    by = np.argsort(label, kind="stable")
    values, first = np.unique(label[by], return_index=True)
    parts = zip(values, np.split(begin[by], first[1:]), np.split(end[by], first[1:]), strict=True)
    return [(int(value), start, stop) for value, start, stop in parts]


def _code(begin: npt.NDArray[np.intp], end: npt.NDArray[np.intp], height: int, width: int) -> str:
    # Gap, run, gap, run, ..., and the gap that may be left.
    marks = np.stack([begin, end], 1).ravel()
    counts = np.diff(marks, prepend=0).tolist()
    if marks[-1] < height * width:
        counts.append(height * width - int(marks[-1]))
    packed = _coco().frPyObjects({"counts": counts, "size": [height, width]}, height, width)
    return str(packed["counts"].decode("ascii"))


def encode_mask(mask: Mask) -> str:
    """Return COCO's counts of a mask (H, W).

    Raises:
        InputError: pycocotools is missing.
    """
    packed = _coco().encode(np.asfortranarray(mask, np.uint8))
    return str(packed["counts"].decode("ascii"))


def decode_mask(counts: str, height: int, width: int) -> Mask:
    """Return the mask (H, W) of COCO's counts; needs no pycocotools.

    Raises:
        ValueError: they are no such counts, or do not fill H x W pixels.
    """
    runs = np.array(uncompressed(counts), np.int64)
    if (runs < 0).any() or runs.sum() != height * width:
        raise ValueError(f"the run lengths do not fill {width} x {height} pixels")
    return unrun(runs, (height, width))


def fill_polygons(polygons: Sequence[npt.NDArray[np.floating[Any]]], height: int, width: int) -> Mask:
    """Return the union (H, W) of polygons (n, 2) x, y, rastered as pycocotools does.

    Raises:
        InputError: pycocotools is missing.
    """
    codes = _coco().frPyObjects([polygon.ravel().tolist() for polygon in polygons], height, width)
    return decode_mask(_coco().merge(codes)["counts"].decode("ascii"), height, width)


def components(mask: Mask) -> tuple[npt.NDArray[np.int32], int]:
    """Return the connected components of a mask (H, W) as numbers from 1 on, the largest first, and how many.

    Of components of equal area, the one comes first that begins further up, then further left.

    Raises:
        InputError: scipy is missing.
    """
    numbers, count = _ndimage().label(mask, structure=_TOUCH)
    areas = np.bincount(numbers.ravel(), minlength=count + 1)[1:]
    rank = np.zeros(count + 1, np.int32)
    rank[1 + np.argsort(-areas, kind="stable")] = np.arange(1, count + 1)
    return rank[numbers], int(count)

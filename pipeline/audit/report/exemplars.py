"""Images that show a class: those with the most typical maps, and those with the least."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.audit.findings.base import Evidence, image_refs
from pipeline.audit.findings.samples import densities
from schemas.audit import ImageRef

TYPICAL, UNUSUAL = "typical map", "least typical map"


def exemplars(evidence: Evidence, classes: Iterable[int], each: int = 3) -> Iterator[tuple[int, tuple[ImageRef, ...]]]:
    """Yield (class, references) for classes that the sample holds: the typical maps first, then the least typical.

    A map is typical where it correlates with the mean map of its class in the sample.

    Args:
        evidence: of the audit.
        classes: in the order in which they are wanted.
        each: of either.
    """
    target = evidence.sample["target_class"].to_numpy()
    for wanted in classes:
        start, stop = np.searchsorted(target, [wanted, wanted + 1])
        if start == stop:
            continue
        rows = evidence.sample.slice(start, stop - start)
        order = np.argsort(-_typicality(rows), kind="stable")
        typical = order[: min(each, (len(order) + 1) // 2)]
        unusual = order[len(typical) :][::-1][:each]
        found = image_refs(rows.take(pa.array(typical)), TYPICAL) + image_refs(rows.take(pa.array(unusual)), UNUSUAL)
        yield wanted, found


def _typicality(rows: pa.Table) -> npt.NDArray[np.float64]:
    flat = densities(rows)
    centred = flat - flat.mean(1, keepdims=True)
    mean = centred.mean(0)
    size = np.sqrt((centred**2).sum(1) * (mean**2).sum())
    return np.asarray(np.divide(centred @ mean, size, out=np.zeros(len(rows)), where=size > 0))

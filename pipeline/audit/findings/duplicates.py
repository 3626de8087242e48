"""Images that are in the lake more than once, byte for byte; the worst under different labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.audit.findings.base import Evidence, FindingKind, severity
from pipeline.audit.findings.samples import plural
from schemas.audit import Finding, ImageRef

Digests = npt.NDArray[np.uint64]

#: Images that are looked up, and of one picture's copies.
_LOOKED_UP = 200_000
_COPIES = 100
#: Images in a finding, and of one picture.
_SHOWN = 48
_SHOWN_COPIES = 4
#: Shares of the images at which the severities are full.
_GRAVE_LABELS = 0.02
_GRAVE_COPIES = 0.2
_LABELS_WEIGHT = 0.5
_COPIES_WEIGHT = 0.4


@dataclass
class _Copy:
    """One image of several that are equal."""

    sha256: bytes
    image_id: str
    unit_id: str
    label: int | None


@dataclass
class _Found:
    """What was looked up: the pictures that occur again, and whether that was all of them."""

    pictures: list[list[_Copy]] = field(default_factory=list)
    complete: bool = True

    def conflicting(self) -> list[list[_Copy]]:
        """Return the pictures with several labels."""
        return [each for each in self.pictures if len({copy.label for copy in each if copy.label is not None}) > 1]


class Duplicates(FindingKind):
    """Equal images, by the SHA-256 of their encoded bytes."""

    name = "duplicates"

    def find(self, evidence: Evidence) -> list[Finding]:
        """Return one finding about equal images with different labels, and one about the other equal images.

        The state keeps the first 64 bits of the digests; those that occur again are looked up in the lake, at most
        ``_LOOKED_UP`` images, and compared by the whole digest. Of very many images the state keeps a share, chosen by
        the digests themselves, so that all copies of a picture are kept or none.
        """
        digests, counts = np.unique(evidence.state.digests, return_counts=True)
        again, copies = digests[counts > 1], counts[counts > 1]
        if not len(again):
            return []
        quota = np.minimum(copies, _COPIES)
        few = int(np.searchsorted(np.cumsum(quota), _LOOKED_UP, side="right"))
        found = _look_up(evidence, again[:few], quota[:few])
        found.complete = few == len(again) and int(copies.max()) <= _COPIES
        if not found.pictures:
            return []
        conflicting = found.conflicting()
        plain = {id(each) for each in conflicting}
        others = [each for each in found.pictures if id(each) not in plain]
        surplus, kept = int((copies - 1).sum()), int(counts.sum())
        result = []
        if conflicting:
            result.append(self._labels(evidence, conflicting, found, kept))
        if others:
            result.append(self._copies(evidence, others, found, surplus, len(again), kept))
        return result

    def _labels(self, evidence: Evidence, pictures: list[list[_Copy]], found: _Found, kept: int) -> Finding:
        images = sum(map(len, pictures))
        share = images / kept
        return Finding(
            finding_id=f"{self.name}:labels",
            kind=self.name,
            title="Equal images with different labels",
            sentence=(
                f"{_least(found)}{plural(len(pictures), 'picture')} {_are(len(pictures))} in the data more than once "
                f"under different labels ({images:,} images, equal byte for byte{_kept(evidence)}): all but one label "
                "of each must be wrong, or the picture shows several classes."
            ),
            remedy="Decide on one label for each picture, and keep one copy.",
            severity=severity(share / _GRAVE_LABELS, _LABELS_WEIGHT),
            effect=float(images),
            effect_name="count",
            n=kept,
            images=_refs(evidence, pictures),
            details={"pictures": len(pictures), **_details(evidence, found)},
        )

    def _copies(
        self, evidence: Evidence, pictures: list[list[_Copy]], found: _Found, surplus: int, again: int, kept: int
    ) -> Finding:
        share = surplus / kept
        return Finding(
            finding_id=f"{self.name}:copies",
            kind=self.name,
            title="Images that occur more than once",
            sentence=(
                f"{share:.2%} of the images are further copies of others, byte for byte "
                f"({surplus:,} {'copy' if surplus == 1 else 'copies'} of "
                f"{plural(again, 'picture')} among {plural(kept, 'image')}{_kept(evidence)}): they count more than "
                "once, and where copies are in training and test data the test is too easy."
            ),
            remedy="Keep one copy of each, and make sure that none is in both training and test data.",
            severity=severity(share / _GRAVE_COPIES, _COPIES_WEIGHT),
            effect=share,
            effect_name="share",
            n=kept,
            images=_refs(evidence, sorted(pictures, key=lambda each: -len(each))),
            details={"copies": surplus, "pictures": again, **_details(evidence, found)},
        )


def _look_up(evidence: Evidence, wanted: Digests, quota: npt.NDArray[np.int64]) -> _Found:
    """Read the digests of the images table until all that are wanted have been seen."""
    seen = np.zeros(len(wanted), np.int64)
    copies: list[_Copy] = []
    for batch, prefixes in _digests(evidence):
        place = np.minimum(np.searchsorted(wanted, prefixes), len(wanted) - 1)
        rows = np.flatnonzero(wanted[place] == prefixes)
        if not len(rows):
            continue
        # Of a picture with very many copies the first ones do.
        order = rows[np.argsort(place[rows], kind="stable")]
        starts = np.flatnonzero(np.diff(place[order], prepend=-1))
        rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
        order = order[seen[place[order]] + rank < quota[place[order]]]
        seen += np.bincount(place[order], minlength=len(wanted))
        copies += [_Copy(**row) for row in pa.Table.from_batches([batch]).take(pa.array(order)).to_pylist()]
        if (seen >= quota).all():
            break
    pictures: dict[bytes, list[_Copy]] = {}
    for copy in copies:
        pictures.setdefault(copy.sha256, []).append(copy)
    ordered = sorted(pictures.items())
    return _Found([sorted(each, key=lambda copy: copy.image_id) for _, each in ordered if len(each) > 1])


def _digests(evidence: Evidence) -> Iterator[tuple[pa.RecordBatch, Digests]]:
    """Yield rows of the images table that have a digest, and its first 64 bits as the state keeps them."""
    names = ["sha256", "image_id", "unit_id", "label"]
    for batch in evidence.lake.images.to_batches(columns=names, filter=pc.field("sha256").is_valid()):
        if len(batch):
            column = batch.column(0)
            size = column.type.byte_width
            data = np.frombuffer(column.buffers()[1], np.uint8, len(batch) * size, column.offset * size)
            yield batch, data.reshape(-1, size)[:, :8].copy().view("<u8").ravel().astype(np.uint64)


def _refs(evidence: Evidence, pictures: list[list[_Copy]]) -> tuple[ImageRef, ...]:
    """Return some copies of each picture, of different labels where there are any."""
    found: list[ImageRef] = []
    for copies in pictures:
        first: dict[int | None, list[_Copy]] = {}
        for copy in copies:
            first.setdefault(copy.label, []).append(copy)
        shown = [each[0] for each in first.values()] + [copy for each in first.values() for copy in each[1:]]
        for copy in shown[:_SHOWN_COPIES]:
            label = "no label" if copy.label is None else f"labelled '{evidence.frame.name(copy.label)}'"
            note = f"picture {copy.sha256.hex()[:8]}, {label}"
            found.append(ImageRef(image_id=copy.image_id, unit_id=copy.unit_id, note=note))
        if len(found) >= _SHOWN:
            break
    return tuple(found[:_SHOWN])


def _details(evidence: Evidence, found: _Found) -> dict[str, float | bool]:
    return {"looked_at": _share(evidence), "all_looked_up": found.complete}


def _share(evidence: Evidence) -> float:
    """Return which share of the images' digests the state keeps."""
    return min(1.0, evidence.frame.digest_limit / 2.0**64)


def _kept(evidence: Evidence) -> str:
    share = _share(evidence)
    return "" if share > 0.9999 else f"; looked for in {share:.1%} of all images"


def _least(found: _Found) -> str:
    return "" if found.complete else "At least "


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


KIND = Duplicates()

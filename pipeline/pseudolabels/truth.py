"""True masks to compare labels with: a folder of index PNGs, or a COCO file; their classes matched to the labels'."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np

from pipeline.audit.regions.base import plain_name, stems
from pipeline.audit.regions.coco import Coco
from pipeline.pseudolabels.collection import Collection, Item, LabelFolder
from pipeline.pseudolabels.confusion import IGNORED, Ids
from pipeline.pseudolabels.digests import Digests
from pipeline.pseudolabels.rle import fill_polygons
from schemas.errors import InputError, did_you_mean
from schemas.pseudolabels import BACKGROUND_ID

Unknown = Literal["wrong", "ignore"]

#: Added to the ids of true classes that the labels do not have.
FOREIGN = 1 << 16
_SHOWN = 3


class Truth(ABC):
    """True masks by image, with the labels' ids.

    ``names`` gives names by those ids. A true class that the labels do not have keeps its own id plus
    :data:`FOREIGN`, or is ignored.
    """

    names: dict[int, str]

    @abstractmethod
    def key(self, item: Item) -> str | None:
        """Return under which name an image's mask is known here; None: it is not."""

    @abstractmethod
    def read(self, key: str, size: tuple[int, int]) -> Ids:
        """Return the ids (H, W) int32 of a mask, in an image of ``size`` (H, W) if it is drawn and not stored.

        Raises:
            InputError: it is no mask.
            LakeError: it cannot be read.
        """

    @abstractmethod
    def masks(self) -> Iterator[str]:
        """Yield the names of all masks."""


class MaskTruth(Truth):
    """A folder of index PNGs.

    A mask is looked for under the labels' own name, then under the image's id without suffix, then its last part.
    """

    def __init__(self, folder: LabelFolder, labels: Collection, *, ignore: int | None, unknown: Unknown) -> None:
        self._folder = folder
        self._ignore = ignore
        self.names, lookup = matched(folder.classes, labels.classes, unknown, folder.store.uri)
        self._lookup = lookup
        self._known = Digests(self.masks())

    def key(self, item: Item) -> str | None:
        """See :meth:`Truth.key`."""
        return next((each for each in _candidates(item) if each in self._known), None)

    def read(self, key: str, size: tuple[int, int]) -> Ids:
        """See :meth:`Truth.read`."""
        ids = self._folder.read(f"{key}.png", self._ignore)
        if self._lookup is None:
            return ids
        found = self._lookup[ids]  # IGNORED, -1, is the last
        lost = found == _UNNAMED
        if lost.any():
            raise InputError(
                f"'{self._folder.store.where(key)}.png' has pixels of {int(ids[lost][0])}, which the truth's "
                "classes.json does not name; add it, or give --ignore that value"
            )
        return found

    def masks(self) -> Iterator[str]:
        """See :meth:`Truth.masks`."""
        for part in self._folder.parts():
            yield from (item.name for item in part)


class CocoTruth(Truth):
    """A COCO file with segmentations, drawn over one another, the largest first.

    Where objects overlap the smaller one counts, as it lies before the larger one or is a part of it.
    """

    def __init__(
        self, uri: str, labels: Collection, storage_options: Mapping[str, Any] | None, unknown: Unknown
    ) -> None:
        self._coco = _Drawn(uri, storage_options)
        self._uri = uri
        ids = self._coco.categories
        self.names, lookup = matched(ids, labels.classes, unknown, uri)
        self._ids = {
            plain_name(name): number if lookup is None else int(lookup[number]) for number, name in ids.items()
        }

    def key(self, item: Item) -> str | None:
        """See :meth:`Truth.key`."""
        found = (self._coco.known_as(each) for each in _candidates(item))
        return next((each for each in found if each is not None), None)

    def read(self, key: str, size: tuple[int, int]) -> Ids:
        """See :meth:`Truth.read`."""
        height, width = size
        drawn: list[tuple[int, Any]] = []
        for instance in self._coco.instances({"image_id": key, "height": height, "width": width}) or ():
            if instance.name is None or (instance.mask is None and not instance.polygons):
                raise InputError(
                    f"--truth: an object of picture '{key}' of '{self._uri}' has no category or no segmentation; "
                    "truth needs both"
                )
            # COCO's numbers have two decimals, and its raster falls on the half pixels that single precision misses.
            polygons = [np.round(each.astype(np.float64), 3) for each in instance.polygons]
            mask = instance.mask if instance.mask is not None else fill_polygons(polygons, height, width)
            drawn.append((self._ids[plain_name(instance.name)], mask))
        found = np.full(size, BACKGROUND_ID, np.int32)
        for label, mask in sorted(drawn, key=lambda pair: -int(np.count_nonzero(pair[1]))):
            found[mask] = label
        return found

    def masks(self) -> Iterator[str]:
        """See :meth:`Truth.masks`."""
        return self._coco.pictures()


class _Drawn(Coco):
    """A COCO file, by the names of its pictures."""

    field = "--truth"
    remedy = "the last part of an image's id must be the name of its file there"

    def _pictures(self, document: dict[str, Any]) -> list[Any]:
        found = super()._pictures(document)
        try:
            self.categories = {int(entry["id"]): str(entry["name"]) for entry in document.get("categories") or ()}
        except ValueError as error:
            raise InputError(f"--truth: a category of '{self._uri}' has no number as its id ({error})") from error
        return found

    def known_as(self, name: str) -> str | None:
        """Return the whole name of the picture that is called so."""
        picture = self._picture(name)
        return None if picture is None else stems(picture.file_name)[-1]

    def pictures(self) -> Iterator[str]:
        for stem, picture in self._by_name.items():
            if picture is not None and stem == stems(picture.file_name)[-1]:
                yield stem


def _candidates(item: Item) -> list[str]:
    return list(dict.fromkeys([item.name, *reversed(stems(item.image_id))]))


_UNNAMED = -2


def matched(
    theirs: Mapping[int, str] | None, ours: Mapping[int, str] | None, unknown: Unknown, where: str
) -> tuple[dict[int, str], Ids | None]:
    """Match the truth's classes to the labels', by name; by id where one of them has no names.

    Returns:
        Names by id, of both; and the label id of each of the truth's ids (65536 + 1 of them, the last is ``IGNORED``'s
        own), ``_UNNAMED`` where it has no name; None where ids mean the same.

    Raises:
        InputError: both have names, and none of them is alike.
    """
    background = {BACKGROUND_ID: "background"}
    if theirs is None or ours is None:
        return background | dict(theirs or {}) | dict(ours or {}), None
    by_name: dict[str, int] = {}
    for number, name in ours.items():
        by_name.setdefault(plain_name(name), number)
    lookup = np.full(FOREIGN + 1, _UNNAMED, np.int32)
    lookup[BACKGROUND_ID], lookup[IGNORED] = BACKGROUND_ID, IGNORED
    names = background | dict(ours)
    shared = False
    for number, name in theirs.items():
        if not 0 < number < FOREIGN:
            raise InputError(f"--truth: class '{name}' of '{where}' has the id {number}; ids are 1 to {FOREIGN - 1}")
        known = by_name.get(plain_name(name))
        shared |= known is not None
        if known is not None:
            lookup[number] = known
        elif unknown == "ignore":
            lookup[number] = IGNORED
        else:
            lookup[number] = FOREIGN + number
            names[FOREIGN + number] = name
    if not shared:
        example, others = next(iter(ours.values())), [str(name) for name in theirs.values()]
        raise InputError(
            f"--truth: no class of '{where}' ({', '.join(others[:_SHOWN])}, ...) has the name of a class of the "
            f"labels, such as '{example}'{did_you_mean(example, others)}; name them alike, or leave classes.json out "
            "to compare ids"
        )
    return names, lookup


def open_truth(
    uri: str,
    labels: Collection,
    storage_options: Mapping[str, Any] | None = None,
    *,
    ignore: int | None = None,
    unknown: Unknown = "wrong",
) -> Truth:
    """Open the true masks.

    Args:
        uri: a COCO file (``.json``), or a folder of index PNGs.
        labels: what is compared with them.
        storage_options: of the truth's file system.
        ignore: value of ignored pixels of PNGs. Default: 255 of 8 bits, 65535 of 16.
        unknown: what becomes of true classes that the labels do not have: their pixels are ``wrong`` whatever the
            labels say, or are ignored.

    Raises:
        InputError: nothing is there, it cannot be read, or no class is in both.
    """
    if uri.lower().endswith(".json"):
        if ignore is not None:
            raise InputError("--ignore is a value of pixels, and a COCO file has none; leave it out")
        return CocoTruth(uri, labels, storage_options, unknown)
    folder = LabelFolder(uri, storage_options)
    truth = MaskTruth(folder, labels, ignore=ignore, unknown=unknown)
    if next(truth.masks(), None) is None:
        raise InputError(f"--truth: '{uri}' holds no index images (*.png), and is no COCO file (.json); check the URI")
    return truth

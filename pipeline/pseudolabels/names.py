"""Names of the files of an image: relative, within the folder, and of one image each.

Images of a folder keep their relative path without the suffix, so that a mask lies as its image does; others have their
id. Characters that are awkward in paths or URLs are written as the ``%XX`` of their UTF-8 bytes, ``%`` too, so that two
different ids never have one name, whatever unit they are in. Only where a suffix is taken off may two images meet
(``a.jpg``, ``a.png``); a folder's plan lists its files, so :func:`check_plan` finds that before anything starts.

Names that differ in nothing but case are left: stores and the file systems of clusters keep them apart.
"""

from __future__ import annotations

import unicodedata
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

import schemas.job
from pipeline.pseudolabels.digests import digest
from pipeline.sources.fields import IMAGE_SUFFIXES, printable
from pipeline.sources.patterns import Naming
from schemas.errors import InputError
from schemas.unit import Unit

_SAFE = frozenset("_.+-=@,() ")
#: What a file system holds in one part of a path, less the longest suffix; what S3 holds in a key, less room for the
#: lake's own folder.
_PART_BYTES, _NAME_BYTES = 255 - len(".png"), 800
_FILES = (".png", ".npz")


class Name(NamedTuple):
    """An image's name without suffix, or why it can have none, in words."""

    stem: str | None
    reason: str | None


def mirrors(source: schemas.job.Source) -> bool:
    """Say whether names are the images' relative paths without suffix."""
    return source.format == "folder" and source.id is None


def mask_names(image_ids: Sequence[str], *, mirrored: bool) -> list[Name]:
    """Return the names of a unit's images, e.g. ``cats/0001`` for ``cats/0001.jpg``.

    A name depends on nothing but the id. The second image of a unit that comes to the same name has a reason instead.

    Args:
        image_ids: as in the images table.
        mirrored: they are paths, and their suffixes are taken off (:func:`mirrors`).
    """
    found: list[Name] = []
    owners: dict[str, str] = {}
    for image_id in image_ids:
        name = mask_name(image_id, mirrored=mirrored)
        if name.stem is not None:
            first = owners.setdefault(name.stem, image_id)
            if first != image_id:
                name = Name(None, f"its mask would be '{name.stem}.png', as that of '{first}'; rename one of them")
        found.append(name)
    return found


def mask_name(image_id: str, *, mirrored: bool) -> Name:
    """Return the name of one image; see :func:`mask_names`."""
    path = image_id
    if mirrored:
        stem, dot, suffix = image_id.rpartition(".")
        if dot and suffix.lower() in IMAGE_SUFFIXES and stem.rpartition("/")[2]:
            path = stem
    scheme, separator, rest = path.partition("://")
    parts = (rest if separator else path).split("/")
    if path.startswith("/") or "" in parts or "." in parts or ".." in parts:
        return Name(
            None, f"the id '{image_id}' is no path within a folder, so no mask can have its name; set source.id"
        )
    safe = [_escape(part, last=number == len(parts)) for number, part in enumerate(parts, start=1)]
    if separator:
        safe.insert(0, f"{_escape(scheme, last=False)}%3A%2F")
    name = "/".join(safe)
    if max(len(part.encode()) for part in safe) > _PART_BYTES or len(name.encode()) > _NAME_BYTES:
        return Name(None, f"the id '{image_id[:60]}...' is too long for a file's name; set source.id")
    return Name(name, None)


def _escape(part: str, *, last: bool) -> str:
    kept = "".join(each if _is_safe(each) else _percent(each) for each in part)
    if kept[:1] in (".", " "):  # hidden, or lost in lists of names
        kept = _percent(kept[0]) + kept[1:]
    if kept[-1:] == " ":
        kept = kept[:-1] + _percent(" ")
    if not last and kept.lower().endswith(_FILES):
        # A folder must not be called what a file may be called.
        kept = f"{kept[:-4]}%2E{kept[-3:]}"
    return kept


def _is_safe(character: str) -> bool:
    return character in _SAFE or character.isalnum() or unicodedata.category(character)[0] == "M"


def _percent(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "backslashreplace"))


def check_plan(plan: Callable[[], Iterable[Unit]], source: schemas.job.Source) -> None:
    """Check that no two images of a folder come to one name. Memory: 8 bytes per image.

    Args:
        plan: returns the units; it is asked again where two names are alike.
        source: the job's source; others than folders pass, as their names are different by themselves.

    Raises:
        InputError: two do; the message names both.
    """
    if not mirrors(source):
        return
    digests = array("Q", (digest(stem) for _, stem in _stems(plan(), source)))
    hashes = np.frombuffer(digests, np.uint64)
    values, counts = np.unique(hashes, return_counts=True)
    repeated = {int(each) for each in values[counts > 1]}
    if not repeated:
        return
    first: dict[str, str] = {}
    for image_id, stem in _stems(plan(), source):
        if digest(stem) not in repeated:
            continue
        if stem in first:
            raise InputError(
                f"source.uri: '{first[stem]}' and '{image_id}' would have the same mask, '{stem}.png'; rename one, or "
                "name a column of the folder's metadata in source.id"
            )
        first[stem] = image_id


def _stems(units: Iterable[Unit], source: schemas.job.Source) -> Iterator[tuple[str, str]]:
    for unit in units:
        yield from folder_images(unit, source)


def folder_images(unit: Unit, source: schemas.job.Source) -> Iterator[tuple[str, str]]:
    """Yield the ids of the images that the plan lists for a unit of a folder, each with the name of its mask."""
    root = Naming(source.uris, folders=True).name(unit.uri)
    for member in unit.members or ():
        image_id = printable(f"{root}/{member}" if root else member)
        stem = mask_name(image_id, mirrored=True).stem
        if stem is not None:
            yield image_id, stem

"""Boxes in a column of the images table: JSON text, as list attributes of the source become."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.audit.regions.base import Instance, InstanceSource, as_box
from schemas.errors import InputError

#: No image has so many objects; longer text is not read.
_MOST_CHARACTERS = 4 << 20


class Column(InstanceSource):
    """A text column that holds ``[[x0, y0, x1, y1], ...]`` or ``[{"box": [...], "name": ...}, ...]``.

    Edges are in pixels of the decoded original. A null or empty text says that nothing is known of the image.
    """

    remedy = "it is empty in all of them; name the column that holds boxes"

    def __init__(self, column: str) -> None:
        self._column = column

    def instances(self, image: Mapping[str, Any]) -> Sequence[Instance] | None:
        """See :meth:`InstanceSource.instances`."""
        text = image[self._column]
        if text is None or not text.strip():
            return None
        try:
            return _parsed(text)
        except (ValueError, RecursionError) as error:
            raise self._fault(image, error) from error

    def about(self) -> str:
        """See :meth:`RegionSource.about`."""
        return f"boxes in the column '{self._column}'"

    def _fault(self, image: Mapping[str, Any], error: Exception) -> InputError:
        reason = " ".join(str(error).split())
        return InputError(
            f"{self.field}: column '{self._column}' of image '{image['image_id']}' holds no boxes ({reason}); write "
            '[[x0, y0, x1, y1], ...] or [{"box": [x0, y0, x1, y1], "name": "..."}, ...], or leave it empty'
        )


def _parsed(text: str) -> list[Instance]:
    if len(text) > _MOST_CHARACTERS:
        raise ValueError(f"it has {len(text)} characters")
    entries = json.loads(text)
    if not isinstance(entries, list):
        raise ValueError("it is no list")
    if len(entries) == 4 and all(isinstance(each, int | float) for each in entries):
        entries = [entries]
    return [_instance(entry) for entry in entries]


def _instance(entry: Any) -> Instance:
    if not isinstance(entry, dict):
        return Instance(None, as_box(entry))
    if "box" not in entry:
        raise ValueError("an object has no 'box'")
    name = entry.get("name")
    if name is not None and not isinstance(name, str | int):
        raise ValueError("an object's 'name' is no text")
    return Instance(None if name is None else str(name), as_box(entry["box"]))


SOURCE = Column

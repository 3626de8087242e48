"""A folder of Pascal VOC XML files, one per image, as ILSVRC's boxes are too."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from xml.etree.ElementTree import Element, ParseError, TreeBuilder
from xml.parsers.expat import ExpatError, ParserCreate

from pipeline.audit.regions.base import Instance, InstanceSource, as_box, factors, read_if_there, scaled_box, stems
from pipeline.lake.parallel import Once
from pipeline.sources.storage import open_fs
from schemas.errors import InputError

#: Larger files are not read; one of a thousand objects has some 300 kB.
_MOST_BYTES = 4 << 20
#: Files of the images asked for last that are kept: an image is asked for once per explained class.
_CACHE = 64


class Voc(InstanceSource):
    """``FOLDER/STEM.xml``, else ``FOLDER/IMAGE_ID.xml``. Images without a file are unknown.

    Pixels count from 1 and both ends of a box belong to it, so its edges are ``xmin - 1`` and ``xmax``.
    """

    def __init__(self, uri: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self._uri = uri.rstrip("/")
        self._options = storage_options
        self._fs, self._path = open_fs(self._uri, storage_options, field=self.field)
        self._read = Once(self._read_file, _CACHE)

    def instances(self, image: Mapping[str, Any]) -> Sequence[Instance] | None:
        """See :meth:`InstanceSource.instances`."""
        found = self._read(str(image["image_id"]))
        if found is None:
            return None
        name, size, instances = found
        by = factors(size, image, self.field, f"'{self._uri}/{name}'")
        return [replace(each, box=scaled_box(each.box, by)) for each in instances if each.box]

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to workers as what it was made of: caches and connections are each process's own."""
        return type(self), (self._uri, self._options), {"any_class": self.any_class}

    def about(self) -> str:
        """See :meth:`RegionSource.about`."""
        return f"boxes of the Pascal VOC files in {self._uri}"

    def _read_file(self, image_id: str) -> tuple[str, tuple[int, int] | None, list[Instance]] | None:
        for stem in stems(image_id):
            name = f"{stem}.xml"
            where = f"{self._uri}/{name}"
            data = read_if_there(self._fs, f"{self._path}/{name}", where, self.field, _MOST_BYTES)
            if data is None:
                continue
            try:
                root = parse(data)
                return name, _size(root), [_instance(each) for each in root.findall("object")]
            except (ExpatError, ParseError, ValueError) as error:
                reason = " ".join(str(error).split())
                raise InputError(
                    f"{self.field}: '{where}', the boxes of image '{image_id}', is no Pascal VOC file ({reason}); "
                    "correct or remove it"
                ) from error
        return None


def parse(data: bytes) -> Element:
    """Return the root of an XML document without a document type, so that no entity can be defined.

    Raises:
        ExpatError: it is not well-formed.
        ValueError: it has a document type.
    """
    builder = TreeBuilder()
    parser = ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = _refuse
    parser.Parse(data, True)
    return builder.close()


def _refuse(*_: Any) -> None:
    raise ValueError("it has a document type, which may define entities")


def _size(root: Element) -> tuple[int, int] | None:
    """Return (width, height); None where the file has none, or zeros, as some tools write."""
    found = root.find("size")
    if found is None:
        return None
    width, height = (int(_number(found, name)) for name in ("width", "height"))
    return (width, height) if width > 0 and height > 0 else None


def _instance(entry: Element) -> Instance:
    box = entry.find("bndbox")
    if box is None:
        raise ValueError("an object has no 'bndbox'")
    x0, y0, x1, y1 = (_number(box, name) for name in ("xmin", "ymin", "xmax", "ymax"))
    # Some writers count from 0, which no file tells.
    return Instance(
        (entry.findtext("name") or "").strip() or None, as_box([max(0.0, x0 - 1), max(0.0, y0 - 1), x1, y1])
    )


def _number(parent: Element, name: str) -> float:
    text = parent.findtext(name)
    if text is None:
        raise ValueError(f"'{parent.tag}' has no '{name}'")
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the '{name}' of '{parent.tag}' is {value}")
    return value


SOURCE = Voc

"""A COCO instances file of a lake's labels, written as the rows come."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any


class CocoWriter:
    """Writes ``annotations.json``; images and annotations may be more than the memory holds.

    Args:
        path: of the file.
        classes: names by id, without the background.
        info: what stands under ``info``.
    """

    def __init__(self, path: Path, classes: Mapping[int, str], info: Mapping[str, Any]) -> None:
        self._path = path
        self._head = {
            "info": dict(info),
            "licenses": [],
            "categories": [{"id": number, "name": name} for number, name in sorted(classes.items())],
        }
        self._images = path.with_suffix(".images").open("w", encoding="utf-8")
        self._annotations = path.with_suffix(".annotations").open("w", encoding="utf-8")
        self._counts = {"images": 0, "annotations": 0}

    def __enter__(self) -> CocoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        parts = {"images": self._images, "annotations": self._annotations}
        for part in parts.values():
            part.close()
        if kind is None:
            with self._path.open("w", encoding="utf-8") as file:
                file.write(json.dumps(self._head, ensure_ascii=False)[:-1])
                for name, part in parts.items():
                    file.write(f', "{name}": [\n')
                    with Path(part.name).open(encoding="utf-8") as lines:
                        for line in lines:
                            file.write(line)
                    file.write("]")
                file.write("}\n")
        for part in parts.values():
            Path(part.name).unlink()

    def add(self, file_name: str, width: int, height: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write an image and its labels.

        Args:
            file_name: relative to the folder of images.
            width: pixels.
            height: pixels.
            rows: of the labels table, with codes; those without pixels are left out, which no reader of COCO expects.
        """
        number = self._counts["images"] + 1
        image = {"id": number, "file_name": file_name, "width": width, "height": height}
        self._line(self._images, "images", image)
        for row in rows:
            if not row["area"]:
                continue
            annotation = {
                "id": self._counts["annotations"] + 1,
                "image_id": number,
                "category_id": row["label_id"],
                "segmentation": {"size": [height, width], "counts": row["rle_counts"]},
                "bbox": [row["x0"], row["y0"], row["x1"] - row["x0"], row["y1"] - row["y0"]],
                "area": row["area"],
                "iscrowd": 0,
                "score": round(row["score"], 6),
            }
            self._line(self._annotations, "annotations", annotation)

    def _line(self, file: Any, kind: str, entry: Mapping[str, Any]) -> None:
        comma = ",\n" if self._counts[kind] else ""
        file.write(comma + json.dumps(entry, ensure_ascii=False))
        self._counts[kind] += 1

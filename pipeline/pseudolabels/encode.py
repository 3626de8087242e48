"""The files of one image's labels, and its rows of the labels table."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa

from pipeline.pseudolabels.classes import LabelClasses
from pipeline.pseudolabels.labels import ImageLabels
from pipeline.pseudolabels.png import Index, encode_confidence, encode_index
from pipeline.pseudolabels.result import LabelledImage, Spool
from pipeline.pseudolabels.rle import components, encode_labels
from pipeline.pseudolabels.soft import encode_soft
from pipeline.pseudolabels.table import labels_table
from schemas import layout
from schemas.pseudolabels import LabelFiles


class Encoder:
    """Encodes labels as a job's ``files`` ask for.

    Raises:
        InputError: a package that these files need is missing.
    """

    def __init__(self, files: LabelFiles, classes: LabelClasses) -> None:
        self._files = files
        self._classes = classes
        # Now, not when the first image is done.
        if files.rle != "none":
            encode_labels(np.zeros((1, 1), np.int32))
        if files.rle == "component":
            components(np.zeros((1, 1), np.bool_))

    def __call__(self, labels: ImageLabels, image_id: str, name: str, spool: Spool) -> LabelledImage:
        """Encode the labels of an image and put its files into the spool."""
        mask = layout.mask(name)
        files = {mask: encode_index(labels.index, self._files.palette)}
        if self._files.confidence:
            files[layout.confidence(name)] = encode_confidence(labels.confidence)
        if self._files.soft and labels.scores is not None:
            files[layout.soft(name)] = encode_soft(labels.scores, [owner.label_id for owner in labels.classes])
        height, width = labels.index.shape
        return LabelledImage(
            labels.image_index,
            mask,
            (height, width),
            labels.classes,
            {path: spool.put(data) for path, data in files.items()},
            self._rows(labels, image_id, mask),
        )

    def _rows(self, labels: ImageLabels, image_id: str, mask: str) -> pa.Table:
        # The unit's id is the sink's to fill in.
        return labels_table("", [dataclasses.replace(labels, image_index=0)], [image_id], [mask], self._files.rle)

    def rows_of(self, image: LabelledImage, image_id: str, index: Index) -> pa.Table:
        """Return the rows of an image whose index image stands already with other pixels than ours.

        The places are those of ``index``; the scores are the means of our own labels, class by class.
        """
        ours = image.rows.select(["label_id", "score", "area"]).to_pylist()
        confidence = np.zeros(index.shape, np.float32)
        for owner in image.classes:
            rows = [row for row in ours if row["label_id"] == owner.label_id]
            area = sum(row["area"] for row in rows)
            mean = sum(row["score"] * row["area"] for row in rows) / area if area else 0.0
            confidence[index == owner.label_id] = mean
        return self._rows(ImageLabels(image.image_index, index, image.classes, confidence), image_id, image.mask)

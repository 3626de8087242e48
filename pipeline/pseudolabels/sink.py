"""The sink of pseudo-label jobs: files with the names that trainers look for, two tables, and the commit.

The files of images are created and never overwritten: where one stands already, from an earlier attempt at the unit,
it stays and it is what the commit answers for. The images table, named by its attempt, is written first, so that of
every file that some attempt left it can be told which image it belongs to.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from pipeline.lake import tables
from pipeline.lake.documents import object_info
from pipeline.lake.sink import UnitResult
from pipeline.lake.store import LakeStore
from pipeline.lake.writer import PUT_THREADS, CommittingSink, Stored
from pipeline.pseudolabels.classes import manifest_classes
from pipeline.pseudolabels.encode import Encoder
from pipeline.pseudolabels.png import decode_index
from pipeline.pseudolabels.result import LabelledImage, LabelResult
from schemas import layout
from schemas.documents import Manifest, ObjectInfo
from schemas.errors import LakeError
from schemas.job import Output
from schemas.pseudolabels import LABELS, LabelFiles


class LabelSink(CommittingSink):
    """Writes labels into the lake at ``output.uri``."""

    def __init__(self, output: Output, manifest: Manifest, store: LakeStore | None = None) -> None:
        super().__init__(output, manifest, store)
        files = LabelFiles.model_validate(manifest.job["pseudo_labels"]["files"])
        self._encoder = Encoder(files, manifest_classes(manifest))

    def store_objects(self, result: UnitResult) -> Stored:
        """Write the images table, the files of images, and the labels table.

        Raises:
            LakeError: the store failed, or a file stands that is of another image.
        """
        if not isinstance(result, LabelResult):
            raise TypeError(f"a lake of labels takes a LabelResult, not {type(result).__name__}")
        unit, attempt, metadata = result.unit_id, result.attempt, self.metadata(result)
        images = tables.images_table(unit, result.images, self.manifest.attributes)
        objects = self.put_all({layout.images(unit, attempt): tables.to_parquet(images, metadata)})
        parts: list[pa.Table] = []
        with ThreadPoolExecutor(PUT_THREADS, thread_name_prefix="lake-put") as pool:
            for infos, rows in pool.map(lambda image: self._create(result, image), result.labels):
                objects += infos
                parts.append(rows)
        labels = pa.concat_tables([LABELS.empty_table(), *parts])
        column = labels.schema.get_field_index("unit_id")
        labels = labels.set_column(column, LABELS.field(column), pa.array([unit] * len(labels), pa.string()))
        objects += self.put_all({layout.labels(unit, attempt): tables.to_parquet(labels, metadata)})
        return Stored(objects, len(labels), dict(result.flags))

    def _create(self, result: LabelResult, image: LabelledImage) -> tuple[list[ObjectInfo], pa.Table]:
        """Create the files of an image; returns what stands, and the rows that fit it."""
        assert result.spool is not None
        infos, rows = [], image.rows
        for path, piece in image.files.items():
            data = result.spool.get(piece)
            if not self.store.put_if_absent(path, data):
                standing = self.store.get(path)
                # Equal on one kind of processor; others may round the last bit otherwise.
                if standing != data and path == image.mask:
                    rows = self._rows_of_standing(result, image, standing)
                data = standing
            infos.append(object_info(path, data))
        return infos, rows

    def _rows_of_standing(self, result: LabelResult, image: LabelledImage, data: bytes) -> pa.Table:
        where = self.store.where(image.mask)
        image_id = str(result.images[image.image_index]["image_id"])
        try:
            index = decode_index(data)
        except (OSError, ValueError, SyntaxError) as error:
            raise LakeError(f"{where} stands already and is no index image ({error}); delete it") from error
        if index.shape != image.size:
            raise LakeError(
                f"{where} stands already with {index.shape[1]} x {index.shape[0]} pixels, and image '{image_id}' has "
                f"{image.size[1]} x {image.size[0]}; delete it if no other image of this lake has that name"
            )
        return self._encoder.rows_of(image, image_id, index)


SINK = LabelSink

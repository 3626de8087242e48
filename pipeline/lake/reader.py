"""Reading a lake: tables as pyarrow datasets, heatmaps as numpy arrays, pictures by one ranged read.

Readers follow commits only, so a lake can be read while it is written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from pipeline.lake.arrays import METADATA, SHARD, ArrayReader, Layout, parse
from pipeline.lake.documents import is_closed, read_commits, read_manifest, read_success
from pipeline.lake.enlarge import lay_over, resize
from pipeline.lake.parallel import THREADS, Once, ahead
from pipeline.lake.selection import blocks, cells, complete, conditions
from pipeline.lake.store import LakeStore, client_errors
from pipeline.sources.remote import RemoteFiles
from pipeline.sources.storage import open_fs
from schemas import layout
from schemas.documents import Commit, Manifest
from schemas.errors import InputError, LakeError
from schemas.tables import MAPS, images_schema
from schemas.view import View

Map = npt.NDArray[np.float32]
Size = Literal["original"] | tuple[int, int] | None

_OPEN_ARRAYS = 256
_OPEN_UNITS = 16
_KNOWN_IMAGES = 4096
_BLOCK_BYTES = 4 << 20


def open_lake(uri: str, storage_options: Mapping[str, Any] | None = None) -> Lake:
    """Open a lake for reading.

    Args:
        uri: fsspec URI of the lake's folder.
        storage_options: options of its file system.

    Raises:
        InputError: there is no lake here.
        LakeError: it is of another format version, or a document is damaged.
    """
    return Lake(LakeStore(uri, storage_options))


class Lake:
    """An opened lake. What was committed when it was opened is seen; :meth:`refresh` looks again.

    Safe to share between threads.
    """

    def __init__(self, store: LakeStore) -> None:
        self.store = store
        self.manifest: Manifest = read_manifest(store)
        self.refresh()

    def refresh(self) -> None:
        """Read the commits that have landed since."""
        self.finished = read_success(self.store) is not None
        self.commits: dict[str, Commit] = {
            commit.unit_id: commit for commit in read_commits(self.store) if not is_closed(commit)
        }
        self._sizes = {info.path: info.size for commit in self.commits.values() for info in commit.objects}
        # Per instance, and dropped with it: an object never changes under its name.
        self._array = Once(self._open_array, _OPEN_ARRAYS)
        self._unit_images = Once(self._read_unit_images, _OPEN_UNITS)
        self._unit_of = Once(self._find_unit, _KNOWN_IMAGES)

    # Tables ------------------------------------------------------------------------------------------------------

    @property
    def images(self) -> ds.Dataset:
        """The images table: one row per input image, the failed ones too (:data:`schemas.tables.IMAGES`)."""
        paths = [layout.images(unit, commit.attempt) for unit, commit in self.commits.items()]
        return self._dataset(paths, images_schema(self.manifest.attributes))

    @property
    def maps(self) -> ds.Dataset:
        """The maps table: one row per heatmap (:data:`schemas.tables.MAPS`)."""
        return self._dataset([self._maps_path(unit) for unit in self.commits], MAPS)

    def _maps_path(self, unit: str) -> str:
        if self.manifest.kind == "labels":
            raise InputError(
                f"{self.store.uri} is a lake of labels, which holds no maps; give one that 'camlake attribute' wrote"
            )
        return layout.maps(unit, self.commits[unit].attempt)

    def _dataset(self, paths: list[str], schema: pa.Schema) -> ds.Dataset:
        if not paths:
            return ds.dataset(schema.empty_table())
        filesystem = self._filesystem()
        full = [f"{self.store.root}/{path}" for path in paths]
        # By default the first file's schema would count, and columns that later files have would be dropped.
        newest = max(self.commits.values(), key=lambda commit: commit.created)
        written = pq.read_schema(
            f"{self.store.root}/{layout.images(newest.unit_id, newest.attempt)}"
            if schema is not MAPS
            else f"{self.store.root}/{layout.maps(newest.unit_id, newest.attempt)}",
            filesystem=filesystem,
        )
        for field in written:
            if field.name not in schema.names:
                schema = schema.append(field)
        return ds.dataset(full, schema=schema, format="parquet", filesystem=filesystem)

    def _filesystem(self) -> pafs.FileSystem:
        if self.store.kind == "local":
            return pafs.LocalFileSystem()
        return pafs.PyFileSystem(pafs.FSSpecHandler(self.store.fs))

    # Heatmaps ----------------------------------------------------------------------------------------------------

    def heatmap(
        self, row: Mapping[str, Any], *, scaled: bool = False, size: Size = None, outside: float = float("nan")
    ) -> Map:
        """Return the heatmap of a row of the maps table.

        Args:
            row: with ``store_path``, ``store_row``, ``vmax``, and for ``size="original"`` also ``image_id``; the more
                so ``unit_id``, which saves a search.
            scaled: divide by the map's own largest absolute value: [0, 1], or [-1, 1] of a signed method. Otherwise
                the raw magnitudes (stored x scale x vmax).
            size: None for the stored grid, (height, width) of the view, or ``"original"`` to lay it over the original
                image through the view.
            outside: value outside the view, where ``size`` is ``"original"``.

        Returns:
            (h, w) float32. All NaN for a map that was not finite.

        Raises:
            LakeError: no commit names the array, or it is damaged.
        """
        reader = self._array(str(row["store_path"]))
        stored = reader.stored([int(row["store_row"])])
        values = _raw(reader.layout, stored, np.array([row["vmax"]], np.float32), scaled)[0]
        return self._sized(values, row, size, outside)

    def heatmaps(
        self,
        filter: ds.Expression | None = None,
        *,
        method: str | None = None,
        layer: str | None = None,
        target_class: int | None = None,
        scaled: bool = False,
        size: Size = None,
        outside: float = float("nan"),
        threads: int = THREADS,
    ) -> Iterator[tuple[dict[str, Any], Map]]:
        """Yield (row of the maps table, heatmap) of many maps, each array opened once and read ahead by threads.

        The order is by unit, then array, then row. Memory does not grow with the lake.

        Args:
            filter: pyarrow expression over the columns of the maps table.
            method: only this method's maps.
            layer: only this layer's maps.
            target_class: only maps of this class index.
            scaled: as :meth:`heatmap`.
            size: as :meth:`heatmap`.
            outside: as :meth:`heatmap`.
            threads: that read.

        Raises:
            InputError: the lake has no such method or layer.
            LakeError: an object is missing or damaged.
        """
        found = self.batches(
            filter, method=method, layer=layer, target_class=target_class, scaled=scaled, threads=threads
        )
        for table, maps in found:
            # Enlarged maps are made one at a time, as they are asked for: they may be a thousand times larger.
            for row, values in zip(table.to_pylist(), maps, strict=True):
                yield row, self._sized(values, row, size, outside)

    def batches(
        self,
        filter: ds.Expression | None = None,
        *,
        method: str | None = None,
        layer: str | None = None,
        target_class: int | None = None,
        scaled: bool = False,
        threads: int = THREADS,
    ) -> Iterator[tuple[pa.Table, Map]]:
        """Yield (rows of the maps table, heatmaps (T, h, w) float32 on the stored grid), many maps at a time.

        For computing over a whole lake: as :meth:`heatmaps`, without a Python object per map. A batch is of one unit,
        method and layer, and at most 4 MiB of maps.
        """
        condition = conditions(self.manifest, self.store.uri, filter, method, layer, target_class)

        def table(unit: str) -> pa.Table:
            found = complete(self._read(self._maps_path(unit)), MAPS)
            return found if condition is None else found.filter(condition)

        def parts() -> Iterator[tuple[str, pa.Table]]:
            for found in ahead(table, list(self.commits), threads):
                yield from blocks(found, lambda name: max(1, _BLOCK_BYTES // (4 * cells(self.manifest, name))))

        def maps(part: tuple[str, pa.Table]) -> tuple[pa.Table, Map]:
            path, rows = part
            reader = self._array(path)
            stored = reader.stored(rows["store_row"].to_numpy())
            return rows, _raw(reader.layout, stored, rows["vmax"].to_numpy(), scaled)

        yield from ahead(maps, parts(), threads)

    # By unit -----------------------------------------------------------------------------------------------------

    def unit_images(self, unit_id: str) -> pa.Table:
        """Return the rows of the images table of one committed unit, in its order."""
        return self._read(layout.images(unit_id, self.commits[unit_id].attempt))

    def unit_maps(self, unit_id: str) -> pa.Table:
        """Return the rows of the maps table of one committed unit: array by array, and in each by image and class."""
        return complete(self._read(self._maps_path(unit_id)), MAPS)

    def stored_maps(self, rows: pa.Table, *, scaled: bool = False) -> Map:
        """Return the heatmaps (T, h, w) float32 of rows of the maps table that lie in one array.

        Args:
            rows: at least one; with ``store_path``, ``store_row`` and ``vmax``.
            scaled: as :meth:`heatmap`.

        Raises:
            LakeError: no commit names the array, or it is damaged.
            ValueError: the rows are of several arrays.
        """
        paths = pc.unique(rows["store_path"]).to_pylist()
        if len(paths) != 1:
            raise ValueError(f"rows of {len(paths)} arrays; read them one array at a time")
        reader = self._array(paths[0])
        return _raw(reader.layout, reader.stored(rows["store_row"].to_numpy()), rows["vmax"].to_numpy(), scaled)

    def _read(self, path: str) -> pa.Table:
        """Read one Parquet object in one request."""
        try:
            return pq.read_table(pa.BufferReader(self.store.get(path)))
        except (pa.ArrowException, OSError) as error:
            raise LakeError(f"{self.store.where(path)} is no sound Parquet file ({error}); run 'camlake verify'") from (
                error
            )

    def _open_array(self, path: str) -> ArrayReader:
        where, shard = self.store.where(path), f"{path}/{SHARD}"
        if shard not in self._sizes:
            raise LakeError(f"{where}: no commit names this array; take store_path from this lake's maps table")
        grid = parse(self.store.get(f"{path}/{METADATA}"), where)
        return ArrayReader(
            grid, lambda start, stop: self.store.get_range(shard, start, stop), self._sizes[shard], where
        )

    def _sized(self, values: Map, row: Mapping[str, Any], size: Size, outside: float) -> Map:
        if size is None:
            return values
        if size != "original":
            return resize(values, *size)
        image = self.image(str(row["image_id"]), row.get("unit_id"))
        return lay_over(values, view_of(image), image["height"], image["width"], outside)

    # Images ------------------------------------------------------------------------------------------------------

    def image(self, image_id: str, unit_id: str | None = None) -> dict[str, Any]:
        """Return the row of the images table of one image.

        Args:
            image_id: the image.
            unit_id: its unit, where it is known; without it the whole table is searched.

        Raises:
            InputError: the lake has no such image.
        """
        unit = unit_id if unit_id is not None else self._unit_of(image_id)
        table, places = self._unit_images(unit)
        if image_id not in places:
            raise InputError(f"{self.store.uri}: unit '{unit}' holds no image '{image_id}'; check the id")
        row: dict[str, Any] = table.slice(places[image_id], 1).to_pylist()[0]
        return row

    def _find_unit(self, image_id: str) -> str:
        found = self.images.to_table(columns=["unit_id"], filter=pc.field("image_id") == image_id)
        if not len(found):
            raise InputError(f"{self.store.uri} holds no image '{image_id}'; image ids are in the images table")
        return str(found["unit_id"][0].as_py())

    def _read_unit_images(self, unit: str) -> tuple[pa.Table, dict[str, int]]:
        if unit not in self.commits:
            raise InputError(f"{self.store.uri} holds no unit '{unit}' (yet); check the id, or refresh()")
        table = self._read(layout.images(unit, self.commits[unit].attempt))
        return table, {image_id: place for place, image_id in enumerate(table["image_id"].to_pylist())}

    def image_bytes(
        self,
        image_id: str,
        *,
        unit_id: str | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> bytes:
        """Fetch the encoded image from where it was read: one ranged request, checked against its digest.

        Args:
            image_id: the image.
            unit_id: its unit, where it is known.
            storage_options: of the source's file system. Default: the lake's own, where both are of one kind.

        Raises:
            InputError: the lake has no such image.
            LakeError: the image's bytes are no range of an object, are not there any more, or have changed.
        """
        row = self.image(image_id, unit_id)
        uri, offset, size = row["uri"], row["byte_offset"], row["byte_size"]
        if offset is None or size is None:
            raise LakeError(
                f"image '{image_id}' is no byte range of {uri} (its source packs or compresses it); "
                "read it with the source that the manifest names"
            )
        if storage_options is None and uri.split("://", 1)[0] == self.store.uri.split("://", 1)[0]:
            storage_options = self.store.storage_options
        fs, path = open_fs(uri, storage_options, field="storage_options")
        try:
            if not size:
                data = b""
            elif isinstance(fs, RemoteFiles):
                data = fs.read_range(path, offset, offset + size)
            else:
                data = bytes(fs.cat_file(path, start=offset, end=offset + size))
        except FileNotFoundError as error:
            raise LakeError(
                f"image '{image_id}': {uri} is not there any more; give storage_options, or move it back"
            ) from error
        except client_errors() as error:
            raise LakeError(
                f"image '{image_id}': cannot read {uri} ({error}); give storage_options with the source's credentials"
            ) from error
        if row["sha256"] is not None and hashlib.sha256(data).digest() != row["sha256"]:
            raise LakeError(f"image '{image_id}': {uri} has changed since the run (SHA-256 differs); restore it")
        return data


def view_of(image: Mapping[str, Any]) -> View:
    """Return the view of a row of the images table.

    Raises:
        LakeError: the image failed and has none.
    """
    edges = [image[f"view_{edge}"] for edge in ("x0", "y0", "x1", "y1")]
    if any(edge is None for edge in edges):
        raise LakeError(f"image '{image['image_id']}' has no view (status '{image['status']}': {image['error']})")
    return View(*edges)


def _raw(grid: Layout, stored: npt.NDArray[Any], vmax: npt.NDArray[np.float32], scaled: bool) -> Map:
    """Stored maps (T, h, w) to float32: divided by their largest absolute value, or raw."""
    values = stored.astype(np.float32) * np.float32(grid.scale)
    if not scaled:
        values *= vmax[:, None, None]
    values[np.isnan(vmax)] = np.nan  # integer arrays hold zeros for a map that was not finite
    return values

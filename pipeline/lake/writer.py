"""The sinks that write a lake: objects under names of the attempt's own, then one create-only commit."""

from __future__ import annotations

import re
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.lake import arrays, tables
from pipeline.lake.documents import object_info, read_commit, seal, to_bytes
from pipeline.lake.sink import MapSet, Sink, UnitResult, Written
from pipeline.lake.store import LakeStore, MissingObjectError, StoreError
from schemas import layout
from schemas.documents import Commit, Manifest, ObjectInfo
from schemas.errors import LakeError
from schemas.job import Output
from schemas.tables import FLAGS, MAPS, TABLES_VERSION

PUT_THREADS = 8
_ATTEMPT = re.compile(r"^[A-Za-z0-9_]+$")
OK = "ok"


def now() -> str:
    """The time as documents hold it: UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Stored(NamedTuple):
    """What an attempt wrote: its objects, the rows of its table of maps (or labels), and how many are flagged."""

    objects: list[ObjectInfo]
    maps: int
    flags: dict[str, int]


class CommittingSink(Sink):
    """Writes the results of units into the lake at ``output.uri``: objects first, then one create-only commit.

    Nothing is overwritten, and readers follow commits only, so a worker that was given up for dead and goes on writing
    does no harm.

    Args:
        output: of the job.
        manifest: of the lake, as :func:`pipeline.lake.run.create_or_resume` returns it.
        store: another store than the one that ``output`` names; tests pass one that fails.
    """

    def __init__(self, output: Output, manifest: Manifest, store: LakeStore | None = None) -> None:
        self.store = store if store is not None else LakeStore(output.uri, output.storage_options)
        self.manifest = manifest
        self._output = output

    @abstractmethod
    def store_objects(self, result: UnitResult) -> Stored:
        """Write the objects of an attempt.

        Raises:
            LakeError: the store failed.
            ValueError: the result contradicts itself or the schemas.
        """

    def write(self, result: UnitResult) -> Written:
        """Write a unit's objects and commit them, unless the unit has a commit.

        Raises:
            LakeError: the store failed, or the lake is finished.
            ValueError: the result contradicts itself or the schemas.
        """
        if not _ATTEMPT.match(result.attempt):
            raise ValueError(f"attempt id '{result.attempt}' must be letters, digits and '_' only; use new_attempt()")
        standing = self._standing(result) if self.store.exists(layout.commit(result.unit_id)) else None
        if standing is not None:
            return standing
        began = time.perf_counter()
        stored = self.store_objects(result)
        # Encoding may have been done while the unit computed.
        write = time.perf_counter() - began + result.seconds.get("write", 0.0)
        commit = Commit(
            unit_id=result.unit_id,
            attempt=result.attempt,
            created=now(),
            worker=result.worker,
            images=dict(sorted(Counter(str(row["status"]) for row in result.images).items())),
            maps=stored.maps,
            flags=stored.flags,
            objects=stored.objects,
            seconds={name: round(value, 4) for name, value in {**result.seconds, "write": write}.items()},
            compute=dict(result.compute),
        )
        return self._commit(seal(commit), result)

    def put_all(self, objects: Mapping[str, bytes]) -> list[ObjectInfo]:
        """Write objects (bytes by path) that bear the attempt in their names."""
        with ThreadPoolExecutor(PUT_THREADS, thread_name_prefix="lake-put") as pool:
            for _ in pool.map(self.store.put, objects.keys(), objects.values()):
                pass
        return [object_info(path, data) for path, data in objects.items()]

    def metadata(self, result: UnitResult) -> dict[str, str]:
        """What the tables of an attempt say of themselves beside their schema."""
        return {
            "camlake_format_version": str(layout.FORMAT_VERSION),
            "camlake_tables_version": str(TABLES_VERSION),
            "run_id": self.manifest.run_id,
            "unit_id": result.unit_id,
            "attempt": result.attempt,
        }

    def _commit(self, commit: Commit, result: UnitResult) -> Written:
        # A worker that outlived its run must not add to a lake whose totals stand; finalize holds the slots of the
        # units that were given up, so this is a kind word, not the lock.
        if self.store.exists(layout.SUCCESS):
            raise LakeError(
                f"{self.store.uri} is finished and takes no unit {commit.unit_id}; delete {layout.SUCCESS} to mend it"
            )
        try:
            if self.store.put_if_absent(layout.commit(commit.unit_id), to_bytes(commit)):
                return Written(commit, True)
        except StoreError:
            # The reply may be lost and the commit written: only reading it back tells.
            standing = self._standing(result)
            if standing is None:
                raise
            return standing
        standing = self._standing(result)
        if standing is None:
            raise LakeError(f"{self.store.where(layout.commit(commit.unit_id))} was there and is gone; is it deleted?")
        return standing

    def _standing(self, result: UnitResult) -> Written | None:
        try:
            commit = read_commit(self.store, result.unit_id)
        except MissingObjectError:
            return None
        return Written(commit, commit.attempt == result.attempt)


class LakeSink(CommittingSink):
    """Writes maps, as one array per method and layer, and the tables of images and maps."""

    def store_objects(self, result: UnitResult) -> Stored:
        """Write arrays and tables, all of them named by their attempt."""
        objects, maps = self._encode(result)
        flags = {flag: sum(int(np.sum(each.statistics[flag])) for each in result.map_sets) for flag in FLAGS}
        return Stored(self.put_all(objects), maps, flags)

    def _encode(self, result: UnitResult) -> tuple[dict[str, bytes], int]:
        """Build all objects of an attempt in memory: (bytes by path, number of maps)."""
        unit, attempt = result.unit_id, result.attempt
        metadata = self.metadata(result)
        images = tables.images_table(unit, result.images, self.manifest.attributes)
        image_ids = np.array([row["image_id"] for row in result.images], dtype=object)
        objects: dict[str, bytes] = {}
        parts: list[pa.Table] = []
        for map_set in result.map_sets:
            if not len(map_set.targets):
                continue
            failed = {i for i in set(map_set.targets.image_index.tolist()) if result.images[i]["status"] != OK}
            if failed:
                raise ValueError(f"image {image_ids[min(failed)]} has maps, but its status is not '{OK}'")
            path = layout.heatmaps(map_set.method, map_set.layer, unit, attempt)
            if f"{path}/{arrays.METADATA}" in objects:
                raise ValueError(f"two map sets of unit {unit} go to {path}; give one of the methods a label")
            part, encoded = self._array(map_set, path, unit, attempt, image_ids)
            parts.append(part)
            objects |= {f"{path}/{name}": data for name, data in encoded.items()}
        maps = pa.concat_tables(parts).unify_dictionaries() if parts else MAPS.empty_table()
        objects[layout.images(unit, attempt)] = tables.to_parquet(images, metadata)
        objects[layout.maps(unit, attempt)] = tables.to_parquet(maps, metadata)
        return objects, maps.num_rows

    def _array(
        self,
        map_set: MapSet,
        path: str,
        unit: str,
        attempt: str,
        image_ids: npt.NDArray[np.object_],
    ) -> tuple[pa.Table, dict[str, bytes]]:
        stored, vmax = arrays.quantise(map_set.maps, self._output.dtype, map_set.signed)
        said = np.asarray(map_set.statistics["vmax"], np.float32)
        wrong = np.isfinite(vmax) & (said != vmax)
        if wrong.any():
            raise ValueError(
                f"statistics of '{map_set.method}' at '{map_set.layer}' give vmax {said[wrong][0]}, but the largest "
                f"absolute value of that map is {vmax[wrong][0]}; compute them from the maps that are written"
            )
        if not np.array_equal(np.asarray(map_set.statistics["not_finite"], bool), np.isnan(vmax)):
            raise ValueError(f"statistics of '{map_set.method}' at '{map_set.layer}': not_finite contradicts the maps")
        # Sorting costs nothing here and lets a reader of one class fetch few, contiguous chunks (31 times fewer bytes).
        order = np.argsort(map_set.targets.target_class, kind="stable")
        attributes = {
            "format_version": layout.FORMAT_VERSION,
            "run_id": self.manifest.run_id,
            "method": map_set.method,
            "layer": map_set.layer,
            "signed": map_set.signed,
            "unit": unit,
            "attempt": attempt,
            "raw": "stored * scale * vmax of the maps table",
        }
        table = tables.maps_table(unit, image_ids, map_set, order, path, vmax)
        return table, arrays.encode(stored[order], attributes)


SINK = LakeSink

"""Verification of one unit: the objects of its commit, and that they agree with each other and with the manifest."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.lake import arrays
from pipeline.lake.run import check_object, remedy
from pipeline.lake.store import LakeStore
from pipeline.lake.writer import OK
from schemas import layout
from schemas.documents import Commit, Manifest, ObjectInfo
from schemas.errors import LakeError
from schemas.tables import APPENDED, FLAGS, MAPS, images_schema


@dataclass(frozen=True)
class Problem:
    """Something that is not right: what kind, at which object (relative to the lake), and in one sentence."""

    kind: str
    path: str
    message: str


@dataclass
class UnitCheck:
    """What is wrong with a unit, what was counted, and a 64-bit hash of each image id (for uniqueness)."""

    commit: Commit
    problems: list[Problem] = field(default_factory=list)
    arrays: int = 0
    id_hashes: npt.NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))

    def add(self, kind: str, path: str, message: str) -> None:
        """Note a problem."""
        self.problems.append(Problem(kind, path, message))


def hash_id(image_id: str) -> int:
    """64-bit hash of an image id, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(image_id.encode(), digest_size=8).digest(), "little")


def check_unit(store: LakeStore, manifest: Manifest, commit: Commit) -> UnitCheck:
    """Check every object of a commit and how they fit together.

    A damaged object is named once; what follows from it is not.
    """
    check = UnitCheck(commit)
    data = {info.path: content for info in commit.objects if (content := sound_bytes(check, store, info)) is not None}
    unit, attempt = commit.unit_id, commit.attempt
    images = read_table(
        check,
        store,
        data,
        layout.images(unit, attempt),
        images_schema(manifest.attributes),
        sum(commit.images.values()),
    )
    maps = read_table(check, store, data, layout.maps(unit, attempt), MAPS, commit.maps)
    stored = dict(_read_arrays(check, store, data))
    check.arrays = len(stored)
    if images is not None:
        check_images(check, store, images)
    if maps is not None:
        _check_maps(check, store, maps, images, stored, manifest)
    return check


def sound_bytes(check: UnitCheck, store: LakeStore, info: ObjectInfo) -> bytes | None:
    """Return an object's bytes, or note why they are not what the commit says and return None."""
    content, problem = check_object(store, info)
    if problem is None:
        return content
    kind = "object_missing" if content is None else "object_differs"
    check.add(kind, info.path, f"{problem}; {remedy(check.commit.unit_id)}")
    return None


def read_table(
    check: UnitCheck, store: LakeStore, data: dict[str, bytes], path: str, schema: pa.Schema, count: int
) -> pa.Table | None:
    """Return a table of a commit from its bytes in ``data``, or note what is wrong with it and return None."""
    where = store.where(path)
    if path not in {info.path for info in check.commit.objects}:
        check.add("commit", layout.commit(check.commit.unit_id), f"the commit does not name {where}")
        return None
    if path not in data:
        return None
    try:
        table = pq.read_table(io.BytesIO(data[path]))
    except (pa.ArrowException, OSError) as error:
        check.add("table", path, f"{where} does not open as Parquet ({' '.join(str(error).split())})")
        return None
    lacking = [name for name in schema.names if name not in table.column_names and name not in APPENDED]
    if lacking:
        check.add("table", path, f"{where} lacks the column '{lacking[0]}'")
        return None
    if table.num_rows != count:
        check.add("rows", path, f"{where} has {table.num_rows} rows, and its commit says {count}")
    if set(table["unit_id"].unique().to_pylist()) - {check.commit.unit_id}:
        check.add("rows", path, f"{where} holds rows of another unit")
    return table


def _read_arrays(
    check: UnitCheck, store: LakeStore, data: dict[str, bytes]
) -> Iterator[tuple[str, tuple[arrays.Layout, npt.NDArray[Any]]]]:
    suffix = f"/{arrays.METADATA}"
    for info in check.commit.objects:
        if not info.path.endswith(suffix):
            continue
        path = info.path.removesuffix(suffix)
        metadata, shard = data.get(info.path), data.get(f"{path}/{arrays.SHARD}")
        if metadata is None or shard is None:
            continue
        try:
            yield path, arrays.decode(metadata, shard, store.where(path))
        except LakeError as error:
            check.add("array", path, str(error))


def check_images(check: UnitCheck, store: LakeStore, images: pa.Table) -> None:
    """Check the images table against the commit's counts, and note the hashes of its ids."""
    path = layout.images(check.commit.unit_id, check.commit.attempt)
    where = store.where(path)
    by_status = dict(Counter(images["status"].to_pylist()))
    if by_status != check.commit.images:
        check.add("rows", path, f"{where} counts {by_status} by status, and its commit says {check.commit.images}")
    ids = images["image_id"].to_pylist()
    twice = [image_id for image_id, times in Counter(ids).items() if times > 1]
    if twice:
        check.add("image_id", path, f"{where}: image id '{twice[0]}' appears twice")
    check.id_hashes = np.array([hash_id(image_id) for image_id in set(ids)], np.uint64)


def _check_maps(
    check: UnitCheck,
    store: LakeStore,
    maps: pa.Table,
    images: pa.Table | None,
    stored: dict[str, tuple[arrays.Layout, npt.NDArray[Any]]],
    manifest: Manifest,
) -> None:
    path = layout.maps(check.commit.unit_id, check.commit.attempt)
    where = store.where(path)
    if images is not None:
        statuses = dict(zip(images["image_id"].to_pylist(), images["status"].to_pylist(), strict=True))
        for image_id in set(maps["image_id"].to_pylist()):
            if statuses.get(image_id) != OK:
                state = f"status '{statuses[image_id]}'" if image_id in statuses else "no row in the images table"
                check.add("rows", path, f"{where}: image '{image_id}' has a map, but {state}")
    counted = {flag: int(np.sum(maps[flag].to_numpy())) for flag in check.commit.flags if flag in FLAGS}
    if counted != check.commit.flags:
        check.add("rows", path, f"{where} counts the flags {counted}, and its commit says {check.commit.flags}")
    named = {info.path for info in check.commit.objects}
    table_paths = np.array(maps["store_path"].to_pylist(), dtype=object)
    for store_path in sorted(set(table_paths.tolist())):
        if f"{store_path}/{arrays.METADATA}" not in named or f"{store_path}/{arrays.SHARD}" not in named:
            check.add("rows", path, f"{where}: rows point to {store_path}, which is no array of this commit")
    for store_path, (array_layout, values) in stored.items():
        part = maps.filter(pa.array(table_paths == store_path))
        _check_array(check, store, store_path, array_layout, values, part, manifest)


def _check_array(
    check: UnitCheck,
    store: LakeStore,
    path: str,
    array_layout: arrays.Layout,
    values: npt.NDArray[Any],
    part: pa.Table,
    manifest: Manifest,
) -> None:
    where = store.where(path)
    numbers = part["store_row"].to_numpy()
    if not np.array_equal(np.sort(numbers), np.arange(array_layout.rows)):
        check.add(
            "rows",
            path,
            f"{where} has {array_layout.rows} maps, and the maps table does not point once to each ({len(part)} rows)",
        )
        return
    method, layer = str(array_layout.attributes.get("method")), str(array_layout.attributes.get("layer"))
    pairs = set(zip(part["method"].to_pylist(), part["layer"].to_pylist(), strict=True))
    known = {(info.key, name): info.signed for info in manifest.methods for name in info.layers}
    if pairs != {(method, layer)} or (method, layer) not in known:
        check.add("array", path, f"{where} says method '{method}', layer '{layer}'; the table or the manifest does not")
        return
    grids = {info.name: (info.height, info.width) for info in manifest.model.layers}
    shapes = {grids[name] for name in layer.split("+") if name in grids}
    if shapes and values.shape[1:] not in shapes:
        check.add("array", path, f"{where} holds maps of {values.shape[1:]}, and layer '{layer}' has {sorted(shapes)}")
    wrong = _wrong_scale(values[numbers], part, known[method, layer])
    if wrong is not None:
        check.add("values", path, f"{where}: map {numbers[wrong[0]]} {wrong[1]}")


def _wrong_scale(values: npt.NDArray[Any], part: pa.Table, signed: bool) -> tuple[int, str] | None:
    """Return (row of ``part``, what is wrong) of the first map that its flags or its vmax contradict.

    A map divided by its own largest absolute value has exactly 1 there, in every stored type.
    """
    full = {"float16": 1.0, "uint8": 255.0, "int8": 127.0}[values.dtype.name]
    flat = values.reshape(len(values), -1).astype(np.float32)
    largest = np.abs(flat).max(axis=1)
    not_finite = part["not_finite"].to_numpy()
    all_zero = part["all_zero"].to_numpy()
    vmax = part["vmax"].to_numpy()
    hollow = np.isnan(flat).all(axis=1) if values.dtype.name == "float16" else largest == 0
    checks = [
        (not_finite & ~hollow, "is flagged not_finite, but holds values"),
        (not_finite != np.isnan(vmax), "has a vmax that contradicts its flag not_finite"),
        (~not_finite & (all_zero != (vmax == 0)), "has a vmax that contradicts its flag all_zero"),
        (~not_finite & all_zero & (largest != 0), "is flagged all_zero, but is not"),
        (~not_finite & ~all_zero & (largest != full), "is not scaled by its largest value"),
    ]
    if not signed:
        checks.append((~not_finite & (flat < 0).any(axis=1), "holds negative values, and its method is not signed"))
    for failed, words in checks:
        if failed.any():
            return int(np.flatnonzero(failed)[0]), words
    return None

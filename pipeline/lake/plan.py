"""The frozen inputs of a lake: ``plan/units.parquet`` and its digest."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.lake.documents import mismatch
from pipeline.lake.store import LakeStore, MissingObjectError
from pipeline.sources.digests import Digests
from schemas import layout
from schemas.documents import Manifest
from schemas.errors import InputError, LakeError
from schemas.tables import PLAN, TABLES_VERSION
from schemas.unit import Unit

_ROWS = 8192
_REMEDY = "restore it from a copy"


@dataclass(frozen=True)
class FrozenPlan:
    """A plan as it is stored: the Parquet file, the number of units, and the SHA-256 (hex) over its rows."""

    data: bytes
    units: int
    digest: str


def freeze(units: Iterable[Unit]) -> FrozenPlan:
    """Encode a plan. The digest depends on the rows only, not on how Parquet lays them out.

    Raises:
        InputError: there is no unit.
        ValueError: ``unit_index`` does not count from 0, or a unit id appears twice.
    """
    digest = hashlib.sha256()
    buffer = io.BytesIO()
    count = 0
    seen = Digests()
    schema = PLAN.with_metadata({"camlake_tables_version": str(TABLES_VERSION)})
    iterator = iter(units)
    with pq.ParquetWriter(buffer, schema, compression="zstd") as writer:
        while rows := [asdict(unit) for unit in islice(iterator, _ROWS)]:
            for row in rows:
                if row["unit_index"] != count or not seen.add(row["unit_id"]):
                    raise ValueError(f"unit {row['unit_id']} at position {count} of the plan repeats an id or an index")
                row["members"] = None if row["members"] is None else list(row["members"])
                digest.update(_canonical(row))
                count += 1
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    if not count:
        raise InputError("the plan holds no unit: nothing matches source.uri; check it")
    return FrozenPlan(buffer.getvalue(), count, digest.hexdigest())


def _canonical(row: dict[str, Any]) -> bytes:
    return json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def rows(data: bytes, name: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a stored plan.

    Raises:
        LakeError: it is damaged; ``name`` is its URI in the message.
    """
    try:
        for batch in pq.ParquetFile(io.BytesIO(data)).iter_batches(_ROWS):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise LakeError(f"{name} is no sound Parquet file ({reason}); the object is damaged") from error


def digest_of(data: bytes, name: str) -> str:
    """SHA-256 (hex) over the rows of a stored plan."""
    digest = hashlib.sha256()
    for row in rows(data, name):
        digest.update(_canonical(row))
    return digest.hexdigest()


def read_plan(store: LakeStore, manifest: Manifest | None = None) -> Iterator[Unit]:
    """Yield the units of a lake's plan in their order; only the compressed file is held whole.

    Raises:
        LakeError: it is not there, damaged, or not what ``manifest`` says.
    """
    for row in rows(plan_bytes(store, manifest), store.where(layout.PLAN_UNITS)):
        members = row["members"]
        yield Unit(**{**row, "members": None if members is None else tuple(members)})


def plan_bytes(store: LakeStore, manifest: Manifest | None = None) -> bytes:
    """Return the stored plan.

    Raises:
        LakeError: it is not there, or not what ``manifest`` says.
    """
    where = store.where(layout.PLAN_UNITS)
    try:
        data = store.get(layout.PLAN_UNITS)
    except MissingObjectError as error:
        raise LakeError(f"{where} is not there: the lake has lost its plan; {_REMEDY}") from error
    info = manifest.plan if manifest is not None else None
    problem = mismatch(where, data, info, layout.MANIFEST) if info is not None else None
    if problem is not None:
        raise LakeError(f"{problem}; {_REMEDY}")
    return data

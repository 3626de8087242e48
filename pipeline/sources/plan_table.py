"""The plan as a Parquet file, written and read with flat memory, and its digest.

The rows are :data:`schemas.tables.PLAN`. Row groups end after :data:`GROUP_UNITS` units or :data:`GROUP_MEMBERS` member
files, so that neither side ever holds more than one of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.errors import LakeError
from schemas.tables import PLAN, TABLES_VERSION
from schemas.unit import Unit

GROUP_UNITS = 4096
GROUP_MEMBERS = 1 << 16

_NAMES = [field.name for field in fields(Unit)]


@dataclass(frozen=True, slots=True)
class PlanSummary:
    """What a plan holds; ``digest`` is the SHA-256 (hex) of :class:`InputsDigest`, ``byte_size`` of the known sizes."""

    units: int
    byte_size: int
    digest: str


class InputsDigest:
    """SHA-256 over the plan's rows, one line of JSON each with the columns in the order of ``PLAN``."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def update(self, unit: Unit) -> None:
        """Add the next unit."""
        self._hash.update(json.dumps([getattr(unit, name) for name in _NAMES], separators=(",", ":")).encode() + b"\n")

    def hexdigest(self) -> str:
        """Return the digest of the units so far."""
        return self._hash.hexdigest()


def inputs_digest(units: Iterable[Unit]) -> str:
    """Return the digest of a whole plan; see :class:`InputsDigest`."""
    digest = InputsDigest()
    for unit in units:
        digest.update(unit)
    return digest.hexdigest()


def write_plan(units: Iterable[Unit], sink: BinaryIO) -> PlanSummary:
    """Write units as they come to ``sink``, a binary file that is not closed here.

    What ``units`` raises passes; ``sink`` then holds nothing of use.
    """
    digest = InputsDigest()
    count = byte_size = members = 0
    rows: list[Unit] = []
    schema = PLAN.with_metadata({"camlake_tables_version": str(TABLES_VERSION)})
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:

        def flush() -> None:
            columns = {name: [getattr(unit, name) for unit in rows] for name in _NAMES}
            writer.write_table(pa.table(columns, schema=schema))
            rows.clear()

        for unit in units:
            digest.update(unit)
            rows.append(unit)
            count += 1
            byte_size += unit.byte_size or 0
            members += len(unit.members or ())
            if len(rows) >= GROUP_UNITS or members >= GROUP_MEMBERS:
                flush()
                members = 0
        if rows:
            flush()
    return PlanSummary(count, byte_size, digest.hexdigest())


def read_plan(file: BinaryIO) -> Iterator[Unit]:
    """Stream the units of a plan, one row group at a time.

    Raises:
        LakeError: the file is no plan.
    """
    try:
        table = pq.ParquetFile(file)
        missing = [name for name in _NAMES if name not in table.schema_arrow.names]
    except pa.ArrowInvalid as error:
        raise LakeError(f"the plan is no readable Parquet file ({error}); plan into a new lake") from error
    if missing:
        raise LakeError(f"the plan lacks the columns {', '.join(missing)}; it was not written by camlake")
    for group in range(table.metadata.num_row_groups):
        for row in table.read_row_group(group, columns=_NAMES).to_pylist():
            yield _unit(row)


def _unit(row: dict[str, Any]) -> Unit:
    members = row.pop("members")
    return Unit(**row, members=None if members is None else tuple(members))

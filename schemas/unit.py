"""A unit: the atom of work, retry and commit."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Unit:
    """A shard or a slice of one; a row of the plan (see :data:`schemas.tables.PLAN`).

    ``start`` and ``stop`` count in the source's own terms (byte offsets or rows of a list, row groups of a Parquet
    file). ``images`` is the number of images, where planning tells it. ``members`` names the files of a unit that
    is no single shard, relative to ``uri``.
    """

    unit_id: str
    unit_index: int
    uri: str
    start: int | None = None
    stop: int | None = None
    byte_size: int | None = None
    etag: str | None = None
    members: tuple[str, ...] | None = None
    images: int | None = None

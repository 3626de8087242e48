"""Errors of reading Parquet: what is damage and what is the store."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pyarrow as pa

from pipeline.sources.storage import is_storage_error, translate
from schemas.errors import CamlakeError


@contextlib.contextmanager
def reading(uri: str, damaged: Callable[[str], Exception]) -> Iterator[None]:
    """Turn what reading a Parquet file raises inside the block into ``damaged(reason)`` or the store's sentence."""
    try:
        yield
    except Exception as error:
        if is_damage(error):
            raise damaged(" ".join(str(error).split())) from error
        if isinstance(error, CamlakeError) or not is_storage_error(error):
            raise
        raise translate(error, uri, "source.uri") from error


def is_damage(error: Exception) -> bool:
    """Tell whether Arrow raised ``error`` about the bytes: its own OSError has no errno, those of stores have one."""
    if isinstance(error, pa.ArrowException | UnicodeDecodeError):
        return True
    return type(error) is OSError and error.errno is None and error.__cause__ is None

"""A folder on the local disk that appears when it is complete."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from schemas.errors import InputError


def require_free(output: Path) -> None:
    """Check that a folder is new, or empty.

    Raises:
        InputError: it is not.
    """
    if output.is_dir() and not any(output.iterdir()):
        return
    if output.exists():
        raise InputError(f"--output {output} is there already; give an empty or new folder")


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """Give a folder beside ``output`` to write into; it takes that name at the end, and is removed after an error.

    Raises:
        InputError: the folder cannot be written; an ``OSError`` of the body reads so, too.
    """
    partial = output.absolute().with_name(f".{output.absolute().name}-{uuid.uuid4().hex[:8]}.partial")
    try:
        partial.mkdir(parents=True)
        try:
            yield partial
            partial.rename(output)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    except OSError as error:
        raise InputError(f"--output {output} cannot be written ({error}); name another folder") from error

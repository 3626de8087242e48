"""Objects on a local (or mounted) disk: written whole, durable, and created by exactly one of many writers."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

PARTIAL_SUFFIX = ".partial"
_RETRIES = 8


def replace(full: str, data: bytes) -> None:
    """Write ``data`` to a file through a temporary one; readers see the old file or the whole new one."""
    target = Path(full)
    _publish(target, data, lambda partial: partial.replace(target))
    _sync_folder(target.parent)


def create(full: str, data: bytes) -> bool:
    """Write ``data`` to a file that must not exist; False where it does. Atomic between processes.

    A hard link fails where its name exists, and what it names is complete, so there is neither a race nor a torn file.

    Raises:
        OSError: among others, where the file system has no hard links.
    """
    target = Path(full)
    if target.exists():
        return False
    try:
        _publish(target, data, lambda partial: os.link(partial, target))
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            # Not EPERM, with which some say so: that would read as a lack of rights.
            reason = "the file system has no hard links; use another disk or an object store"
            raise OSError(errno.ENOTSUP, reason) from error
        raise
    _sync_folder(target.parent)
    return True


def delete(full: str, root: str) -> None:
    """Delete a file, and the folders up to ``root`` that are empty then; a missing file is no error."""
    target = Path(full)
    target.unlink(missing_ok=True)
    for folder in target.parents:
        if str(folder) == root or not folder.is_relative_to(root):
            return
        try:
            folder.rmdir()
        except OSError:  # not empty, or gone
            return


def walk(full: str) -> Iterator[tuple[str, int]]:
    """Yield (path, size) of every file below a folder; nothing where there is none."""
    try:
        entries = os.scandir(full)
    except FileNotFoundError:
        return
    with entries:
        for entry in entries:
            if entry.is_dir():
                yield from walk(entry.path)
            else:
                try:
                    size = entry.stat().st_size
                except FileNotFoundError:  # deleted, or renamed into place, while we list
                    continue
                yield entry.path, size


def _publish(target: Path, data: bytes, publish: Callable[[Path], object]) -> None:
    """Write ``data`` beside ``target`` and publish it; again where a sweep of another run took what was not published.

    Two runs may finish one lake at once, and a sweep cannot tell a file in flight from one that a dead writer left.
    """
    for attempt in range(_RETRIES):
        partial = _write_partial(target, data)
        try:
            publish(partial)
        except FileNotFoundError:
            if attempt == _RETRIES - 1:
                raise
        else:
            return
        finally:
            partial.unlink(missing_ok=True)


def _write_partial(target: Path, data: bytes) -> Path:
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}{PARTIAL_SUFFIX}")
    for attempt in range(_RETRIES):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            break
        except FileNotFoundError:  # a sweep removed the folder while it was empty
            if attempt == _RETRIES - 1:
                raise
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            # The commit must not outlive the objects that it names when the machine loses power.
            os.fsync(file.fileno())
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return partial


def _sync_folder(folder: Path) -> None:
    # Not every platform or mount lets a folder be opened or synced; the data itself is synced already.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

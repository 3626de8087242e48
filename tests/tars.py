"""Tars that tests change."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path


def write_tar(original: Path, target: Path, more: Mapping[str, bytes]) -> None:
    """Copy a tar with further members, spread among its own."""
    with tarfile.open(original) as source, tarfile.open(target, "w") as copy:
        members = source.getmembers()
        keys = list(dict.fromkeys(member.name.partition(".")[0] for member in members))
        left = dict(more)
        for number, key in enumerate(keys):
            if number and left:
                name = next(iter(left))
                data = left.pop(name)
                info = tarfile.TarInfo(name)
                info.size = len(data)
                copy.addfile(info, io.BytesIO(data))
            for member in members:
                if member.name.partition(".")[0] == key:
                    copy.addfile(member, source.extractfile(member))
        assert not left, "more members than places between the samples"

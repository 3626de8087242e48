"""Reading and writing the JSON documents of a lake, with errors that name the object."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any, TypeVar

from pydantic import ValidationError

from pipeline.lake.parallel import THREADS, ahead
from pipeline.lake.store import LakeStore, MissingObjectError
from pipeline.sources.digests import Digests
from schemas import layout
from schemas.documents import Commit, Manifest, ObjectInfo, Quarantine, StoredDocument, Success
from schemas.errors import InputError, LakeError

AnyDocument = TypeVar("AnyDocument", bound=StoredDocument)

#: ``attempt`` of the commits with which finalize closes the slots of quarantined units; they name no objects.
CLOSED = "quarantined"

# A document begins with its own digest, so that whoever checks it need not know how the rest is laid out.
_DIGITS = len(b'{\n "sha256": "')
_REMEDIES: dict[type[StoredDocument], str] = {
    Manifest: "restore it from a copy",
    Commit: f"delete it (and {layout.SUCCESS} where it is there) and run the job again",
    Quarantine: f"delete it, its unit's commit and {layout.SUCCESS} where they are there, and run the job again",
    Success: "delete it and run the job again",
}


def read_document(store: LakeStore, path: str, kind: type[AnyDocument], size: int | None = None) -> AnyDocument:
    """Read and validate one document, of ``size`` bytes where a listing told so.

    Raises:
        MissingObjectError: it is not there.
        LakeError: it is damaged, or of another format version.
    """
    data = store.get(path, size)
    remedy = _REMEDIES[kind]
    try:
        found = json.loads(data)
        version, said = found.get("format_version"), found.get("sha256")
    except (ValueError, AttributeError) as error:
        raise LakeError(f"{store.where(path)} is no JSON object ({error}): it is damaged; {remedy}") from error
    if version != layout.FORMAT_VERSION:
        raise LakeError(
            f"{store.where(path)}: format_version is {version}, and this release reads {layout.FORMAT_VERSION}; "
            "open the lake with the release that wrote it"
        )
    if said is not None and said != _digest(data):
        raise LakeError(f"{store.where(path)} has other bytes than it says (SHA-256 differs): it is damaged; {remedy}")
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise LakeError(
            f"{store.where(path)}: '{field}' is not valid ({first['msg']}): it is damaged; {remedy}"
        ) from error


def read_manifest(store: LakeStore) -> Manifest:
    """Read ``camlake.json``.

    Raises:
        InputError: there is no lake here.
        LakeError: it is of another format version, or damaged.
    """
    try:
        return read_document(store, layout.MANIFEST, Manifest)
    except MissingObjectError as error:
        raise InputError(f"'{store.uri}' holds no lake ({layout.MANIFEST} is not there); check the URI") from error


def read_success(store: LakeStore) -> Success | None:
    """Read ``_SUCCESS.json``, or return None where the lake is not finished."""
    try:
        return read_document(store, layout.SUCCESS, Success)
    except MissingObjectError:
        return None


def sizes_in(store: LakeStore, folder: str) -> dict[str, int]:
    """Bytes of each unit's document in ``commits`` or ``quarantine`` by the unit's id, from one listing."""
    return dict(_listed(store, folder))


def _listed(store: LakeStore, folder: str) -> Iterator[tuple[str, int]]:
    for entry in store.list(folder):
        name = entry.path.removeprefix(f"{folder}/")
        if name.endswith(".json") and "/" not in name:
            yield name.removesuffix(".json"), entry.size


def units_in(store: LakeStore, folder: str) -> set[str]:
    """Ids of the units that have a document in ``commits`` or ``quarantine``, from one listing."""
    return {unit for unit, _ in _listed(store, folder)}


def digests_in(store: LakeStore, folder: str) -> Digests:
    """The same in a form that is small and tells only whether a unit is among them."""
    found = Digests()
    for unit, _ in _listed(store, folder):
        found.add(unit)
    return found


def read_commit(store: LakeStore, unit_id: str, size: int | None = None) -> Commit:
    """Read one unit's commit, of ``size`` bytes where a listing told so.

    Raises:
        MissingObjectError: the unit has none.
        LakeError: it is damaged, or of another unit.
    """
    path = layout.commit(unit_id)
    commit = read_document(store, path, Commit, size)
    if commit.unit_id != unit_id:
        raise LakeError(
            f"{store.where(path)} is the commit of unit '{commit.unit_id}'; delete it and run the job again"
        )
    return commit


def read_commits(store: LakeStore, threads: int = THREADS) -> Iterator[Commit]:
    """Yield the commits so far in the order of the unit ids, those that close quarantined units too."""
    sizes = sizes_in(store, layout.COMMITS)
    return ahead(lambda unit: read_commit(store, unit, sizes[unit]), sorted(sizes), threads)


def read_quarantine(store: LakeStore, unit_id: str) -> Quarantine:
    """Read why a unit was given up.

    Raises:
        MissingObjectError: it was not.
        LakeError: the record is damaged, or of another unit.
    """
    path = layout.quarantine(unit_id)
    record = read_document(store, path, Quarantine)
    if record.unit_id != unit_id:
        raise LakeError(f"{store.where(path)} is the record of unit '{record.unit_id}'; {_REMEDIES[Quarantine]}")
    return record


def seal(document: AnyDocument) -> AnyDocument:
    """A document with its own digest, as it is read back."""
    blank = document.model_copy(update={"sha256": "0" * 64})
    return document.model_copy(update={"sha256": _digest(blank.model_dump_json(indent=1).encode())})


def to_bytes(document: StoredDocument) -> bytes:
    """A document as it is stored: JSON with its own digest."""
    return seal(document).model_dump_json(indent=1).encode()


def _digest(data: bytes) -> str:
    """What the digest of a stored document must be."""
    return hashlib.sha256(data[:_DIGITS] + b"0" * 64 + data[_DIGITS + 64 :]).hexdigest()


def object_info(path: str, data: bytes) -> ObjectInfo:
    """Path, size and digest of an object."""
    return ObjectInfo(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest())


def mismatch(where: str, data: bytes, info: ObjectInfo, said_by: str) -> str | None:
    """Say in words what is wrong with an object of which ``said_by`` holds ``info``, or return None."""
    if len(data) != info.size:
        return f"{where} has {len(data)} bytes, and {said_by} says {info.size}"
    if hashlib.sha256(data).hexdigest() != info.sha256:
        return f"{where} has other bytes than {said_by} says (SHA-256 differs)"
    return None


def is_closed(commit: Commit) -> bool:
    """The commit closes the slot of a quarantined unit and holds no result."""
    return commit.attempt == CLOSED


def flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (path, leaf) of a JSON value; empty containers are leaves."""
    if isinstance(value, dict) and value:
        for name, member in value.items():
            yield from flatten(member, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list | tuple) and value:
        for number, member in enumerate(value):
            yield from flatten(member, f"{path}[{number}]")
    else:
        yield path, value

"""The parts of an audit: a lake's units in chunks, and the state of each chunk as a file that is written once."""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.audit.frame import Frame
from pipeline.audit.freed import give_back
from pipeline.audit.objects import Objects
from pipeline.audit.regions.base import RegionSource
from pipeline.audit.state import Merged, State
from pipeline.audit.unit import add_unit
from pipeline.lake import Lake, LakeStore
from pipeline.lake.parallel import Once, ahead
from schemas.audit import AUDIT_VERSION
from schemas.documents import Commit, Manifest
from schemas.errors import CamlakeError, InputError, LakeError

log = logging.getLogger(__name__)

FOLDER = "parts"
#: Of what a part holds; parts of another one are left alone.
PARTS_VERSION = 2
#: Maps of a chunk: some seconds of work, which is what a kill can cost.
MOST_MAPS = 50_000
MOST_UNITS = 256
#: Chunks of a lake: of a large one they are larger, since each leaves a file with sums of every cell.
_MOST_CHUNKS = 512
#: Settings on which parts do not depend: they only say what is made of them.
_AFTERWARDS = frozenset(
    {
        "parts",
        "q",
        "suppressed_below",
        "interval_from",
        "flagged_from",
        "effect_d",
        "effect_energy",
        "effect_ratio",
        "confident",
    }
)
_OPEN_ARRAYS = 256
_READ_AHEAD = 2
_OPEN_UNITS = 4 * _READ_AHEAD


@dataclass(frozen=True)
class Chunk:
    """Some units, and the path of their part relative to the audit's folder."""

    commits: tuple[Commit, ...]
    path: str

    @property
    def units(self) -> tuple[str, ...]:
        """Ids of the units."""
        return tuple(commit.unit_id for commit in self.commits)

    @property
    def maps(self) -> int:
        """Maps of the units, those of all methods."""
        return sum(commit.maps for commit in self.commits)


class Units(Lake):
    """A lake of which only some commits are seen, which are given: a worker need not read them all.

    Args:
        store: the lake.
        manifest: of the lake.
        commits: what is seen.
    """

    def __init__(self, store: LakeStore, manifest: Manifest, commits: Iterable[Commit]) -> None:
        self.store = store
        self.manifest = manifest
        self._given = {commit.unit_id: commit for commit in commits}
        self.refresh()

    def refresh(self) -> None:
        """Look at the given commits anew."""
        self.finished = False
        self.commits = self._given
        self._sizes = {info.path: info.size for commit in self.commits.values() for info in commit.objects}
        self._array = Once(self._open_array, _OPEN_ARRAYS)
        self._unit_images = Once(self._read_unit_images, _OPEN_UNITS)
        self._unit_of = Once(self._find_unit, 1)
        self._images_of = Once(super().unit_images, _OPEN_UNITS)
        self._maps_of = Once(super().unit_maps, _OPEN_UNITS)

    def unit_images(self, unit_id: str) -> pa.Table:
        """See :meth:`Lake.unit_images`."""
        return self._images_of(unit_id)

    def unit_maps(self, unit_id: str) -> pa.Table:
        """See :meth:`Lake.unit_maps`."""
        return self._maps_of(unit_id)

    def fetch(self, unit_id: str) -> None:
        """Read a unit's tables and open its arrays, so that they are there when they are asked for."""
        self.unit_images(unit_id)
        for path in pc.unique(self.unit_maps(unit_id)["store_path"]).to_pylist():
            self._array(path)


def chunks(lake: Lake, frame: Frame, objects: Objects, most_maps: int | None = None) -> list[Chunk]:
    """Cut a lake's committed units, in the order of their ids, into chunks; what is cut depends on the lake only.

    Args:
        lake: the lake.
        frame: of the audit.
        objects: of the audit.
        most_maps: maps of a chunk, where one unit does not have more. Default: by the lake's size.
    """
    commits = [lake.commits[unit] for unit in sorted(lake.commits)]
    limit = most_maps or max(MOST_MAPS, sum(commit.maps for commit in commits) // _MOST_CHUNKS)
    common = _digest(_common(lake.manifest, frame, objects))
    found: list[Chunk] = []
    current: list[Commit] = []
    maps = 0
    for commit in commits:
        if current and (maps + commit.maps > limit or len(current) == MOST_UNITS):
            found.append(_chunk(current, common))
            current, maps = [], 0
        current.append(commit)
        maps += commit.maps
    if current:
        found.append(_chunk(current, common))
    return found


def commits_digest(commits: Iterable[Commit]) -> str:
    """SHA-256 over unit and attempt of commits, in the order of the units."""
    return _digest(sorted((commit.unit_id, commit.attempt) for commit in commits))


def _common(manifest: Manifest, frame: Frame, objects: Objects) -> dict[str, Any]:
    """What all parts of an audit share; a part of which one of these differs is of another audit."""
    return {
        "audit_version": AUDIT_VERSION,
        "parts_version": PARTS_VERSION,
        "run_id": manifest.run_id,
        "settings": frame.settings.model_dump(mode="json", exclude=set(_AFTERWARDS)),
        "series": frame.series,
        "digest_limit": frame.digest_limit,
        "sample_per_class": frame.sample_per_class,
        "objects": objects.stamp,
    }


def _chunk(commits: Sequence[Commit], common: str) -> Chunk:
    name = hashlib.sha256(f"{common}{commits_digest(commits)}".encode()).hexdigest()[:16]
    return Chunk(tuple(commits), f"{FOLDER}/{commits[0].unit_id}-{name}.npz")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Work:
    """All that a worker needs for chunks: picklable, without Ray.

    ``lake`` and ``output`` are the stores of lake and audit; ``regions`` knows where objects are.
    """

    lake: LakeStore
    output: LakeStore
    manifest: Manifest
    frame: Frame
    regions: RegionSource | None = None

    def add(self, units: Sequence[Commit]) -> State:
        """Return the state of some units.

        Raises:
            CamlakeError: says which unit, and why.
        """
        lake = Units(self.lake, self.manifest, units)
        state = State(self.frame)
        fetched = ahead(lake.fetch, [commit.unit_id for commit in units], _READ_AHEAD)
        for commit in units:
            try:
                next(fetched)
                add_unit(state, lake, commit.unit_id, self.regions)
            except InputError:
                raise  # names the file and the image, or the option
            except CamlakeError as error:
                raise type(error)(f"unit '{commit.unit_id}': {error}") from error
            except Exception as error:
                log.error("unit %s", commit.unit_id, exc_info=True)
                raise LakeError(
                    f"unit '{commit.unit_id}' could not be audited ({type(error).__name__}: {error}); "
                    "run 'camlake verify', and where the lake is whole, report this as a bug"
                ) from error
        return state

    def do(self, chunk: Chunk) -> None:
        """Write the part of a chunk, unless it is there.

        Raises:
            CamlakeError: a unit cannot be read (the message says which, and why), or the part cannot be written.
        """
        # Where a racing worker was first, its part holds the same numbers.
        self.output.put_if_absent(chunk.path, self.add(chunk.commits).to_bytes())
        give_back()


def there(output: LakeStore) -> set[str]:
    """Paths of the parts that are there, of whatever audit."""
    return {entry.path for entry in output.list(FOLDER) if entry.path.endswith(".npz")}


def merged(found: Sequence[tuple[LakeStore, Chunk]], frame: Frame) -> Merged:
    """Return the sum of parts, given with the folders in which they lie.

    Raises:
        LakeError: a part is damaged, or was deleted; or the sums leave 64 bits.
    """
    state = Merged(frame)
    read = ahead(lambda each: each[0].get(each[1].path), found, 1)  # parts are large
    for (output, chunk), data in zip(found, read, strict=True):
        try:
            state.add_bytes(data)
        except OverflowError as error:
            raise LakeError(str(error)) from error
        except (zipfile.BadZipFile, zlib.error, ValueError, KeyError, EOFError, OSError, RuntimeError) as error:
            raise LakeError(
                f"{output.where(chunk.path)} is damaged ({error}); delete it and run the same command again"
            ) from error
        give_back()
    state.finish()
    give_back()
    return state


def storage_of(lake: LakeStore, output: str, options: Mapping[str, Any] | None) -> LakeStore:
    """Return the store of the audit's folder; options of the lake's file system hold for it where it is of one kind."""
    same = output.split("://", 1)[0] == lake.uri.split("://", 1)[0] if "://" in output else "://" not in lake.uri
    return LakeStore(output, options if same else None)

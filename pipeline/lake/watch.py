"""Looking at a lake again and again: what is new since the last look, and no more.

Plain :func:`pipeline.lake.status.status` reads every commit. A watch lists them, reads of the new ones a bounded
number, and lists from the first unit on that has no result where the store can do that (S3): a lake of a million units
costs 1,000 listings and at most 1,000 commits at the first look, and then a handful and the commits that came since.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from itertools import pairwise

from pipeline.lake.documents import is_closed, read_commit, read_manifest, read_success, units_in
from pipeline.lake.parallel import THREADS, ahead
from pipeline.lake.status import RECENT, LakeStatus, patience, rate
from pipeline.lake.store import LakeStore
from schemas import layout
from schemas.documents import Commit, Success

#: Commits that one look reads at most.
MOST_READ = 1000
#: Of so many looks one lists all commits: a unit that was given up may be done by a later run.
_FULL_EVERY = 30
# Ids of so many units have six digits, so that they sort as their numbers do.
_SORTED_UNITS = 1_000_000
_NONE, _COMMITTED, _GIVEN_UP = 0, 1, 2


class Watch:
    """Looks at a lake.

    Args:
        store: the lake.
        most_read: commits that one look reads at most, the latest units first; figures of images are of those read.
        threads: that read them.

    Raises:
        InputError: there is no lake here.
        LakeError: its manifest is damaged.
    """

    def __init__(self, store: LakeStore, most_read: int = MOST_READ, threads: int = THREADS) -> None:
        self._store, self._most, self._threads = store, most_read, threads
        self._manifest = read_manifest(store)
        # One byte per unit of the plan; what is before the frontier has a result.
        self._units = bytearray(self._manifest.units)
        self._frontier = 0
        self._looks = 0
        self._read = 0
        self._images: Counter[str] = Counter()
        self._seconds: Counter[str] = Counter()
        self._maps = self._bytes = 0
        self._created = datetime.fromisoformat(self._manifest.created)
        self._times: list[tuple[datetime, int]] = []
        self._first: datetime | None = None
        self._longest_gap = self._longest_unit = 0.0

    def look(self, now: datetime | None = None) -> LakeStatus:
        """Return how far the lake is; ``read`` of the result says of how many units the images are counted.

        Raises:
            LakeError: a document is damaged.
        """
        success = read_success(self._store)
        new = self._list()
        chosen = sorted(new, key=lambda unit: (self._units[_index(unit)] == _GIVEN_UP, unit))[-self._most :]
        for unit in new:
            self._units[_index(unit)] = _COMMITTED
        timeline = []
        for commit in ahead(lambda unit: read_commit(self._store, unit, new[unit]), chosen, self._threads):
            if is_closed(commit):
                self._units[_index(commit.unit_id)] = _GIVEN_UP
            else:
                self._add(commit)
                timeline.append((datetime.fromisoformat(commit.created), sum(commit.images.values())))
        self._note(timeline)
        while self._frontier < len(self._units) and self._units[self._frontier] != _NONE:
            self._frontier += 1
        self._looks += 1
        return self._status(success, now or datetime.now(UTC))

    def _list(self) -> dict[str, int]:
        """Sizes of the commits that are new, by unit."""
        for unit in units_in(self._store, layout.QUARANTINE):
            if 0 <= (index := _index(unit)) < len(self._units) and self._units[index] == _NONE:
                self._units[index] = _GIVEN_UP
        every = self._looks % _FULL_EVERY == 0 or len(self._units) > _SORTED_UNITS
        after = "" if every else f"{layout.COMMITS}/{self._frontier:06d}"
        found = {}
        for entry in self._store.list(layout.COMMITS, after=after):
            unit = entry.path.removeprefix(f"{layout.COMMITS}/").removesuffix(".json")
            index = _index(unit)
            if 0 <= index < len(self._units) and self._units[index] != _COMMITTED:
                found[unit] = entry.size
        return found

    def _add(self, commit: Commit) -> None:
        self._read += 1
        self._images.update(commit.images)
        for stage, value in commit.seconds.items():
            self._seconds[stage] += value  # type: ignore[assignment]  # a Counter adds floats too
        self._longest_unit = max(self._longest_unit, commit.seconds.get("total", 0.0))
        self._maps += commit.maps
        self._bytes += sum(info.size for info in commit.objects)

    def _note(self, timeline: list[tuple[datetime, int]]) -> None:
        """Take in when commits of how many images were made."""
        if not timeline:
            return
        timeline = sorted([*self._times, *timeline])
        times = [when for when, _ in timeline]
        if self._first is None or times[0] < self._first:
            self._first = times[0]
        gaps = [(later - earlier).total_seconds() for earlier, later in pairwise([self._created, *times])]
        if self._times:  # between the start and the latest commits there were others
            del gaps[0]
        self._longest_gap = max([self._longest_gap, *gaps])
        self._times = timeline[-RECENT:]

    def _status(self, success: Success | None, now: datetime) -> LakeStatus:
        manifest = self._manifest
        committed = self._units.count(_COMMITTED) if success is None else success.committed
        given_up = self._units.count(_GIVEN_UP) if success is None else success.quarantined
        remaining = manifest.units - committed - given_up
        last = self._times[-1][0] if self._times else None
        speed = rate(self._times, self._longest_unit)
        mean = sum(self._images.values()) / self._read if self._read else 0.0
        quiet = (now - (last or self._created)).total_seconds() > patience(self._longest_gap)
        return LakeStatus(
            uri=self._store.uri,
            run_id=manifest.run_id,
            state="finished" if success else "interrupted" if quiet else "running",
            planned=manifest.units,
            committed=committed,
            quarantined=given_up,
            # Of a finished lake the totals are known without its commits.
            images=dict(sorted((self._images if success is None else success.images).items())),
            maps=self._maps if success is None else success.maps,
            bytes=self._bytes if success is None else success.bytes,
            created=self._created,
            first_commit=self._first,
            last_commit=last,
            images_per_second=speed,
            eta_seconds=0.0 if not remaining else None if not speed else remaining * mean / speed,
            seconds={stage: round(value, 3) for stage, value in self._seconds.items()},
            kind=manifest.kind,
            read=self._read if success is None else None,
        )


def _index(unit: str) -> int:
    """The place of a unit in the plan, which its id begins with; -1 of what is no id of ours."""
    digits = unit.partition("-")[0]
    return int(digits) if digits.isdecimal() else -1

"""How far a lake is, from any machine: read from its commits, without asking the run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from pipeline.lake.documents import is_closed, read_commits, read_manifest, read_success
from pipeline.lake.parallel import THREADS
from pipeline.lake.run import quarantined
from pipeline.lake.store import LakeStore

_QUIET_SECONDS = 600.0
#: Commits that the speed is measured over.
RECENT = 64


@dataclass(frozen=True)
class LakeStatus:
    """Progress of a lake. Times are UTC; ``seconds`` are summed over the workers, by stage.

    ``state`` is 'finished' (``_SUCCESS.json`` is there), else 'running' or 'interrupted'. The last two are inferred:
    a lake counts as interrupted when it has been quiet for ten minutes and for three times its longest gap between
    commits. ``images_per_second`` is over the last 64 commits; None before they span the time of a unit.
    """

    uri: str
    run_id: str
    state: Literal["finished", "running", "interrupted"]
    planned: int
    committed: int
    quarantined: int
    images: dict[str, int]
    maps: int
    bytes: int
    created: datetime
    first_commit: datetime | None
    last_commit: datetime | None
    images_per_second: float | None
    eta_seconds: float | None
    seconds: dict[str, float]
    kind: Literal["heatmaps", "labels"] = "heatmaps"
    #: Committed units that ``images``, ``maps``, ``bytes`` and ``seconds`` are of; None: all.
    read: int | None = None

    @property
    def holds(self) -> str:
        """What ``maps`` counts, in a word."""
        return "labels" if self.kind == "labels" else "maps"

    @property
    def remaining(self) -> int:
        """Units without a result."""
        return self.planned - self.committed - self.quarantined


def status(store: LakeStore, now: datetime | None = None, threads: int = THREADS) -> LakeStatus:
    """Read the progress of a running, interrupted or finished lake.

    Args:
        store: the lake.
        now: the time to judge by. Default: this machine's clock.
        threads: that read the commits.

    Raises:
        InputError: there is no lake here.
        LakeError: a document is damaged.
    """
    manifest = read_manifest(store)
    finished = read_success(store) is not None
    given_up = quarantined(store)
    images: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    timeline: list[tuple[datetime, int]] = []
    maps = size = 0
    longest = 0.0
    for commit in read_commits(store, threads):
        if is_closed(commit):
            continue
        given_up.discard(commit.unit_id)
        images.update(commit.images)
        for stage, value in commit.seconds.items():
            seconds[stage] += value  # type: ignore[assignment]  # a Counter adds floats too
        longest = max(longest, commit.seconds.get("total", 0.0))
        maps += commit.maps
        size += sum(info.size for info in commit.objects)
        timeline.append((datetime.fromisoformat(commit.created), sum(commit.images.values())))
    timeline.sort()
    created = datetime.fromisoformat(manifest.created)
    times = [when for when, _ in timeline]
    speed = rate(timeline[-RECENT:], longest)
    remaining = manifest.units - len(timeline) - len(given_up)
    mean = sum(images.values()) / len(timeline) if timeline else 0.0
    quiet = ((now or datetime.now(UTC)) - (times[-1] if times else created)).total_seconds()
    gaps = [(b - a).total_seconds() for a, b in zip([created, *times], times, strict=False)]
    return LakeStatus(
        uri=store.uri,
        run_id=manifest.run_id,
        state="finished" if finished else "interrupted" if quiet > patience(max(gaps, default=0.0)) else "running",
        planned=manifest.units,
        committed=len(timeline),
        quarantined=len(given_up),
        images=dict(sorted(images.items())),
        maps=maps,
        bytes=size,
        created=created,
        first_commit=times[0] if times else None,
        last_commit=times[-1] if times else None,
        images_per_second=speed,
        eta_seconds=0.0 if not remaining else None if not speed else remaining * mean / speed,
        seconds={stage: round(value, 3) for stage, value in seconds.items()},
        kind=manifest.kind,
    )


def patience(longest_gap: float) -> float:
    """Seconds without a commit after which a lake counts as interrupted."""
    return max(_QUIET_SECONDS, 3 * longest_gap)


def rate(timeline: list[tuple[datetime, int]], longest: float) -> float | None:
    """Images per second between the first and the last commit; the first one's images came before.

    None until the commits span the ``longest`` seconds of a unit: the first units of several workers end at once.
    """
    if len(timeline) < 2:
        return None
    span = (timeline[-1][0] - timeline[0][0]).total_seconds()
    return sum(count for _, count in timeline[1:]) / span if span > longest else None

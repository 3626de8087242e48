"""What a worker tells the driver; small, and picklable without torch."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker that is ready: its name, node, device and process."""

    name: str
    node: str
    device: str
    pid: int


@dataclass(frozen=True, slots=True)
class Progress:
    """What a worker is doing.

    ``images`` of the unit that it computes are explained. ``mark`` changes whenever anything goes on: a forward, an
    image read or decoded, a result written. ``unit_id`` is the unit that it computes, since ``seconds``; None: none.
    """

    images: int
    mark: tuple[float, ...]
    unit_id: str | None = None
    seconds: float = 0.0
    #: Bytes of GPU memory that its tensors hold, and the most that they held; None without a GPU.
    gpu_memory: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Pool:
    """The workers at one moment: how many are ready, and how many start or wait for room; units that they hold.

    ``gpu_memory`` is that of :class:`Progress`, by the names of workers that have a GPU.
    """

    ready: int
    starting: int
    in_flight: int
    gpu_memory: dict[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A unit that is committed, as the commit says it."""

    unit_id: str
    attempt: str
    worker: str
    images: dict[str, int]
    maps: int
    bytes: int
    seconds: dict[str, float]


@dataclass(slots=True)
class Tally:
    """Sums over committed units."""

    units: int = 0
    images: dict[str, int] = field(default_factory=dict)
    maps: int = 0
    bytes: int = 0

    def add(self, images: dict[str, int], maps: int, size: int) -> None:
        """Add one unit."""
        self.units += 1
        self.maps += maps
        self.bytes += size
        for status, count in images.items():
            self.images[status] = self.images.get(status, 0) + count

    @property
    def total_images(self) -> int:
        """Images of every status."""
        return sum(self.images.values())

    @property
    def failed_images(self) -> int:
        """Images of any status but ok."""
        return self.total_images - self.images.get("ok", 0)

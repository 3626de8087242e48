"""What explains the units of a job: one per worker, chosen by what the lake will hold."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from pipeline.attributor import Attributor
from pipeline.engine.clock import StageClock
from pipeline.engine.reading import Prepared
from pipeline.lake.sink import UnitResult
from pipeline.models.replica import Replica
from schemas.documents import MethodInfo
from schemas.job import Job
from schemas.view import View


class UnitWork(ABC):
    """One unit under way: prepared images in, what the lake stores out. Knows no store."""

    @abstractmethod
    def add_all(self, prepared: Iterator[Prepared], clock: StageClock) -> None:
        """Explain all of ``prepared``."""

    @property
    @abstractmethod
    def masks_scored(self) -> int:
        """Masked images that Score-CAM ran so far; grows between two batches of images, too."""

    @abstractmethod
    def result(self, unit_id: str, attempt: str, worker: str, seconds: dict[str, float]) -> UnitResult:
        """Return what the unit came to; called once, after :meth:`add_all`."""

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Let go of what the unit held; called once, when its result is written or the attempt has failed."""


class Explainer(ABC):
    """A model and a way to explain images with it, shared by the units of a worker.

    Args:
        job: the resolved job.
        replica: the model.

    Raises:
        InputError: the job does not fit the model.
    """

    @abstractmethod
    def __init__(self, job: Job, replica: Replica) -> None: ...

    #: The compute core, as the job has it.
    attributor: Attributor

    @property
    @abstractmethod
    def preprocess(self) -> Callable[[Tensor], tuple[Any, View]]:
        """Turns decoded pixels (3, H, W) uint8 into what :class:`UnitWork` is given as ``Prepared.tensor``.

        It is called on threads and, pickled, in other processes.
        """

    @property
    def ahead(self) -> int:
        """Images that may be prepared and wait, per batch that is computed."""
        return self.attributor.batch_size or 1

    def method_infos(self) -> list[MethodInfo]:
        """Describe the methods as the lake's manifest does."""
        return self.attributor.method_infos()

    def warm_up(self) -> None:  # noqa: B027 - where nothing is compiled, nothing is warmed
        """Compile what the first image would have to wait for."""

    @abstractmethod
    def unit(self, on_images: Callable[[int], None] = lambda count: None) -> UnitWork:
        """Begin a unit.

        Args:
            on_images: called with the number of images that are done, as they are.
        """

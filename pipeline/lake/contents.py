"""What the objects of a lake are, by what it holds: which are whose, and what must be true of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Container
from typing import TYPE_CHECKING

from pipeline.lake.store import LakeStore
from schemas.documents import Commit, Manifest
from schemas.registries import CONTENTS, implementation

if TYPE_CHECKING:
    from pipeline.lake.verify_unit import UnitCheck


class Contents(ABC):
    """The objects of one lake. It is told of every commit, and then knows what the lake should hold.

    Args:
        store: the lake.
        manifest: its own.
    """

    def __init__(self, store: LakeStore, manifest: Manifest) -> None:
        self.store = store
        self.manifest = manifest
        #: The committed attempt of each unit that was noted.
        self.attempts: dict[str, str] = {}

    def note(self, commit: Commit) -> None:
        """Take a unit's commit into account; each is given once."""
        self.attempts[commit.unit_id] = commit.attempt

    @abstractmethod
    def owner(self, path: str) -> tuple[str, str] | None:
        """Return (unit id, attempt) of a data object that bears both in its name, or None where it is none of ours."""

    def is_named(self, path: str) -> bool:
        """Say whether a noted commit, or what finalize adds, accounts for an object."""
        named = self.owner(path)
        return named is not None and self.attempts.get(named[0]) == named[1]

    def is_leftover(self, path: str, units: Container[str]) -> bool:
        """Say whether an object that is not named was left by an attempt at one of ``units``."""
        named = self.owner(path)
        return named is not None and named[0] in units

    def riddle(self, path: str, units: Container[str]) -> str | None:
        """Say which of ``units``, of which nothing tells any more what it left, an object may be of.

        Asked of objects that are neither named nor left over; None where it can be of no unit.
        """
        return None

    def documents(self) -> dict[str, bytes]:
        """Return the documents (bytes by path) that finalize adds to the lake, made from all commits.

        Raises:
            LakeError: the commits contradict each other.
        """
        return {}

    @abstractmethod
    def check_unit(self, commit: Commit) -> UnitCheck:
        """Check every object of a commit and how they fit together."""


def contents(store: LakeStore, manifest: Manifest) -> Contents:
    """Return the contents of a lake, of its kind."""
    found: Contents = implementation(CONTENTS, "kind of lake", manifest.kind).CONTENTS(store, manifest)
    return found

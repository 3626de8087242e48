"""What the end of a worker says: against its unit, or only of its node."""

from __future__ import annotations

from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayActorError

from schemas.redact import redact

#: Kinds of attempts that say nothing against the unit.
LOSSES = ("node_lost", "out_of_memory")
# How Ray words deaths that are a node's: there is no other sign of them.
_NODE_WORDS = ("its node has died", "node was terminated", "the actor never ran", "its owner has died")


def kind_of_death(error: Exception) -> str:
    """Return the kind of attempt that the death of a worker was: the unit's own (died), or what befell it."""
    if isinstance(error, OutOfMemoryError):
        return "out_of_memory"
    words = str(error).lower()
    node = isinstance(error, ActorUnavailableError) or getattr(error, "preempted", False)
    return "node_lost" if node or any(each in words for each in _NODE_WORDS) else "died"


def sentence(error: BaseException) -> str:
    """Return the line of an error that says most, with its type, without credentials, at most 500 characters.

    Quarantine records keep it.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    text = lines[0]
    if isinstance(error, RayActorError):
        # The first line says only that it died; one of the last, how.
        text = next((line for line in reversed(lines) if line.startswith("The actor")), text)
    return redact(f"{type(error).__name__}: {text}")[:500]

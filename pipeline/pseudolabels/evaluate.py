"""Labels against true masks: pairs of images, counted by threads or as Ray tasks, added to one result."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from pipeline.lake.parallel import ahead
from pipeline.pseudolabels.collection import Collection, Item, LabelLake
from pipeline.pseudolabels.confusion import Confusion, Ids
from pipeline.pseudolabels.digests import Digests
from pipeline.pseudolabels.sweep import RULES, Sweep
from pipeline.pseudolabels.truth import Truth
from schemas.errors import CamlakeError, InputError

Missing = Literal["error", "skip"]

#: Images of a part: what a thread or a task takes at once, and what is dropped where one is interrupted.
_PART = 64
_SHOWN = 3


class Pair(NamedTuple):
    """An image's label and under which name the truth knows it."""

    item: Item
    key: str


class Mergeable(Protocol):
    """What parts of a dataset come to."""

    def merge(self, other: Any) -> None: ...


Part = TypeVar("Part", bound=Mergeable)


@dataclass
class Counted:
    """What a part of the images came to. ``sweep`` stays empty where there are no scores, or none are asked for."""

    confusion: Confusion = field(default_factory=Confusion)
    sweep: Sweep = field(default_factory=Sweep)
    images: int = 0
    swept: int = 0

    def merge(self, other: Counted) -> None:
        """Add what another part came to."""
        self.confusion.merge(other.confusion)
        self.sweep.merge(other.sweep)
        self.images += other.images
        self.swept += other.swept


@dataclass
class Coverage:
    """Images on one side alone: labels without truth, and truths without labels, with examples of each."""

    without_truth: int = 0
    without_labels: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Counter:
    """Counts parts; pickles for workers."""

    labels: Collection
    truth: Truth
    sweep: bool

    def __call__(self, pairs: list[Pair]) -> Counted:
        """Count a part.

        Raises:
            CamlakeError: a file cannot be read, or label and truth are of different sizes.
        """
        found = Counted()
        for pair in pairs:
            labels = self.labels.read(pair.item.mask)
            truth = true_mask(self.truth, pair, labels, self.labels)
            found.confusion.add(truth, labels)
            found.images += 1
            if self.sweep and pair.item.soft is not None:
                scores, ids = self.labels.scores(pair.item.soft)
                found.sweep.add(truth, scores, ids)
                found.swept += 1
        return found


def true_mask(truth: Truth, pair: Pair, labels: Ids, collection: Collection) -> Ids:
    """Return the true mask of an image.

    Raises:
        InputError: it has another size than the labels.
    """
    found = truth.read(pair.key, (labels.shape[0], labels.shape[1]))
    if found.shape != labels.shape:
        (height, width), (rows, columns) = labels.shape, found.shape
        raise InputError(
            f"the labels of image '{pair.item.image_id}' ('{collection.store.where(pair.item.mask)}') are of "
            f"{width} x {height} pixels, and its true mask ('{pair.key}') of {columns} x {rows}; give masks of the "
            "images' own size"
        )
    return found


def pairs_of(labels: Collection, truth: Truth, missing: Missing, coverage: Coverage) -> Iterator[list[Pair]]:
    """Yield the images that have both, some at a time; ``coverage`` is complete when all are yielded.

    Raises:
        InputError: an image has labels or a true mask alone and ``missing`` is ``error``; two images have one true
            mask; or no image has both.
    """
    seen = Digests(truth.masks())
    part: list[Pair] = []
    both = 0
    for items in labels.parts():
        for item in items:
            key = truth.key(item)
            if key is None:
                coverage.without_truth += 1
                if len(coverage.examples) < _SHOWN:
                    coverage.examples.append(item.name)
                continue
            if seen.see(key):
                raise InputError(
                    f"--truth: '{key}' is the true mask of two images, one of which is '{item.image_id}'; lay the "
                    "masks out as the labels are"
                )
            both += 1
            part.append(Pair(item, key))
            if len(part) == _PART:
                yield part
                part = []
    coverage.without_labels = seen.unseen
    if not both and not coverage.without_truth:
        raise InputError(f"{labels.store.uri} holds no labelled image (yet); look at: camlake status")
    if not both:
        names = ", ".join(coverage.examples)
        raise InputError(
            f"--truth: none of its {len(seen)} masks is of an image of {labels.store.uri} (such as {names}); masks are "
            "named as the labels are, or by the last part of the image's id"
        )
    if missing == "error" and (coverage.without_truth or coverage.without_labels):
        lonely = coverage.examples or [key for key in truth.masks() if not seen.seen(key)][:_SHOWN]
        raise InputError(
            f"--truth: {coverage.without_truth} images have labels and no true mask, {coverage.without_labels} a true "
            f"mask and no labels (such as {', '.join(lonely[:_SHOWN])}); give --missing skip to compare the {both} "
            "that have both"
        )
    if part:
        yield part


def spread(
    work: Callable[[Any], Part],
    parts: Iterable[Any],
    total: Part,
    *,
    workers: int,
    threads: int,
) -> Part:
    """Return ``total`` with what all parts came to, whatever their order.

    Args:
        work: counts a part; pickles, where there are workers.
        parts: taken as they are needed.
        total: what is added to.
        workers: Ray tasks at a time, of a Ray that this process is connected to; 0: threads of this process.
        threads: in that case.

    Raises:
        CamlakeError: as a part raised it.
    """
    if not workers:
        for found in ahead(work, parts, threads):
            total.merge(found)
        return total
    import ray
    from ray.exceptions import RayTaskError

    task = ray.remote(num_cpus=1, max_retries=3)(_on_worker)
    given = [ray.put(work)]
    flying: deque[Any] = deque()

    def collect() -> None:
        try:
            total.merge(ray.get(flying.popleft()))
        except RayTaskError as error:
            # What a task raises is our own sentence, or a bug.
            if isinstance(error.cause, CamlakeError):
                raise error.cause from None
            raise

    for part in parts:
        flying.append(task.remote(given, part))
        if len(flying) >= workers:
            collect()
    while flying:
        collect()
    return total


#: The work of this process, by the reference that it came with: lakes are opened once, not for every part.
_known: dict[str, Any] = {}


def _on_worker(given: list[Any], part: Any) -> Any:
    import ray

    name = given[0].hex()
    if name not in _known:
        _known.clear()
        _known[name] = ray.get(given[0])
    return _known[name](part)


def sweep_fault(labels: Collection) -> str | None:
    """Say why thresholds cannot be swept from the stored scores; None where they can."""
    if not isinstance(labels, LabelLake):
        return "a plain folder has no scores"
    if not labels.settings.files.soft:
        return "no scores are stored (pseudo_labels.files.soft)"
    if labels.settings.refine.method == "crf":
        return "a dense CRF's scores are made with the background's, and no other threshold can be read from them"
    return None


def sweep_rules(labels: Collection) -> Sequence[str]:
    """Return the background rules that scores can be swept by as the job would apply them.

    Of the refined scores of PAMR only a constant can: the score of a power is refined itself, and a constant is what it
    is after any average.
    """
    refined = isinstance(labels, LabelLake) and labels.settings.refine.method != "none"
    return ("constant",) if refined else RULES

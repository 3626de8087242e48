"""Two lakes compared: another model, or another version of the dataset. Parts from both, then what drifted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TextIO

import pyarrow as pa

from pipeline.audit.compare_page import compare_page
from pipeline.audit.compare_pair import Pair, make_pair
from pipeline.audit.compare_priors import Side, identities
from pipeline.audit.compare_result import Outcome, class_drifts, comparison_columns, outcome, prior_columns
from pipeline.audit.compare_tables import COMPARISON, PRIORS, ComparedLake, CompareManifest, parquet
from pipeline.audit.compare_words import PAIRING
from pipeline.audit.frame import Frame
from pipeline.audit.gather import gather_here, gather_on_ray, interruptible
from pipeline.audit.objects import Objects, open_objects
from pipeline.audit.outputs import document
from pipeline.audit.parts_files import FOLDER, Chunk, Work, chunks, commits_digest, merged, storage_of, there
from pipeline.audit.progress import Progression
from pipeline.audit.run import default_output as audit_of
from pipeline.audit.state import Gathered, Merged
from pipeline.engine.run import versions
from pipeline.lake import Lake, LakeStore, open_lake
from pipeline.lake.local import PARTIAL_SUFFIX
from schemas.audit import Settings
from schemas.errors import InputError

MANIFEST = "comparison.json"
TABLE = "comparison.parquet"
PRIORS_TABLE = "priors.parquet"
REPORT = "comparison.html"
_OURS = (MANIFEST, TABLE, PRIORS_TABLE, REPORT)
_SIDES = ("a", "b")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Comparison:
    """What a comparison found, and where it lies."""

    output: str
    manifest: CompareManifest
    table: pa.Table
    priors: pa.Table


@dataclass(frozen=True)
class _Side:
    """One lake, and where its parts lie: in the comparison's folder, or in that of an audit of the lake."""

    lake: Lake
    frame: Frame
    objects: Objects
    own: LakeStore
    audit: LakeStore | None
    chunks: list[Chunk]
    audited: frozenset[str]
    left: list[Chunk]

    def state(self) -> Merged:
        """Return the sum of all parts."""
        return merged([(self._place(chunk), chunk) for chunk in self.chunks], self.frame)

    def _place(self, chunk: Chunk) -> LakeStore:
        return self.audit if self.audit is not None and chunk.path in self.audited else self.own


def default_output(a: LakeStore, b: LakeStore) -> str:
    """Return the folder of a comparison: beside lake B.

    Raises:
        InputError: B is a whole bucket, which has nothing beside it.
    """
    if b.kind in ("s3", "gcs") and "/" not in b.root:
        raise InputError(f"{b.uri} is a whole bucket, and nothing can lie beside it; give a place with --output")
    return f"{b.uri}.against-{a.uri.rstrip('/').rsplit('/', 1)[-1]}"


def run_compare(
    lake_a: str,
    lake_b: str,
    settings: Settings,
    output: str | None = None,
    *,
    say: Say,
    method_b: str | None = None,
    layer_b: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    workers: int | None = 0,
    connect: Callable[[], None] | None = None,
    stream: TextIO | None = None,
    most_maps: int | None = None,
) -> Comparison:
    """Compare lake B with lake A, or go on where a comparison of the same lakes and settings stopped.

    Both lakes are read as an audit reads them (see :func:`pipeline.audit.run.run_audit`): their parts lie in
    ``OUTPUT/a`` and ``OUTPUT/b``, and parts that an audit beside a lake has left are used where they are of the same
    settings. The numbers do not depend on the number of workers, the order or the cut; ``comparison.json`` comes last.

    Args:
        lake_a: URI of the lake that is compared with, absolute.
        lake_b: URI of the lake that is compared.
        settings: of both; ``groups`` do not count.
        output: URI of the comparison's folder. Default: beside lake B.
        say: takes lines for people.
        method_b: method of B, where it is called otherwise there.
        layer_b: layer of B, where it is called otherwise there.
        storage_options: of A's file system, and of B's and the output's where they are of the same kind.
        workers: Ray tasks at a time; None: one per CPU; 0: no Ray, all in this process.
        connect: connects this process to Ray; called when something is left to do.
        stream: where progress goes (default: stderr).
        most_maps: maps of a chunk. Default: by the lake's size.

    Raises:
        InputError: settings or output do not fit the lakes, or the lakes cannot be compared.
        LakeError: a unit cannot be read; the parts of the others are kept.
        pipeline.audit.gather.Interrupted: SIGINT or SIGTERM came; the parts so far are kept.
    """
    with interruptible():
        first = open_lake(lake_a, storage_options)
        lakes = first, Lake(storage_of(first.store, lake_b, storage_options))
        pair = make_pair(lakes, settings.model_copy(update={"groups": ()}), method_b, layer_b)
        uri = output or default_output(lakes[0].store, lakes[1].store)
        store = _checked(storage_of(first.store, uri, storage_options), lakes)
        sides = [_side(pair, place, store, storage_options, most_maps) for place in range(2)]
        for letter, side, series in zip("AB", sides, pair.series, strict=True):
            say(f"lake {letter}    {side.lake.store.uri}: {len(side.lake.commits)} units, {side.frame.images} images")
            say(f"          {series.method} at {series.layer}, targets: {side.frame.settings.targets}")
            audited = f", {len(side.audited)} of them from {side.audit.uri}" if side.audit and side.audited else ""
            say(f"          {len(side.chunks)} parts, of which {len(side.chunks) - len(side.left)} are there{audited}")
        for note in pair.notes:
            say(f"note      {note}")
    if workers != 0 and connect is not None and any(side.left for side in sides):
        connect()  # which installs handlers of its own
    with interruptible():
        for side in sides:
            _gather(side, workers, stream)
        states = sides[0].state(), sides[1].state()
        samples = [state.sample.table for state in states]
        known_by = [identities(lake, sample) for lake, sample in zip(lakes, samples, strict=True)]
        found = outcome(pair, states, (Side(samples[0], known_by[0]), Side(samples[1], known_by[1])))
        if not found.classes:
            raise InputError(
                f"no class has maps in both {lakes[0].store.uri} and {lakes[1].store.uri} of the targets "
                f"'{pair.frames[0].settings.targets}'; give other --targets, --method or --layer"
            )
        return _finish(found, sides, states, store)


def _side(pair: Pair, place: int, output: LakeStore, options: Mapping[str, Any] | None, most_maps: int | None) -> _Side:
    lake, frame = pair.lakes[place], pair.frames[place]
    objects = open_objects(frame.settings, lake)
    found = chunks(lake, frame, objects, most_maps)
    own = LakeStore(f"{output.uri}/{_SIDES[place]}", output.storage_options)
    have, audit = there(own), None
    if lake.store.kind not in ("s3", "gcs") or "/" in lake.store.root:
        audit = storage_of(lake.store, audit_of(lake.store), options)
    audited = frozenset(() if audit is None else there(audit)) & {each.path for each in found} - have
    left = [each for each in found if each.path not in have and each.path not in audited]
    return _Side(lake, frame, objects, own, audit, found, audited, left)


def _checked(store: LakeStore, lakes: Sequence[Lake]) -> LakeStore:
    """Return the comparison's folder.

    Raises:
        InputError: it lies in a lake, where verify would call it foreign, or holds what is none of ours.
    """
    for lake in lakes:
        root = lake.store.root
        if store.kind == lake.store.kind and (store.root == root or store.root.startswith(f"{root}/")):
            raise InputError(f"--output '{store.uri}' lies in the lake {lake.store.uri}; give a folder beside it")
    if not store.exists(MANIFEST):
        parts = tuple(f"{side}/{FOLDER}/" for side in _SIDES)
        for entry in store.list():
            if not (entry.path in _OURS or entry.path.startswith(parts) or entry.path.endswith(PARTIAL_SUFFIX)):
                raise InputError(
                    f"--output '{store.uri}' is no comparison (it holds {entry.path}); give an empty or new folder"
                )
    return store


def _gather(side: _Side, workers: int | None, stream: TextIO | None) -> None:
    """Write the parts that are missing."""
    if not side.left:
        return
    work = Work(side.lake.store, side.own, side.lake.manifest, side.frame, side.objects.source)
    maps = sum(each.maps for each in side.chunks)
    with Progression(maps, maps - sum(each.maps for each in side.left), stream) as progress:
        if workers == 0:
            gather_here(work, side.left, lambda chunk: progress.done(chunk.maps))
        else:
            gather_on_ray(work, side.left, workers, lambda chunk: progress.done(chunk.maps))


def _finish(found: Outcome, sides: Sequence[_Side], states: tuple[Gathered, Gathered], store: LakeStore) -> Comparison:
    """Write all that is made of the parts, the manifest last."""
    pair = found.pair
    a, b = (_compared(side, state, pair, place) for place, (side, state) in enumerate(zip(sides, states, strict=True)))
    manifest = CompareManifest(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        a=a,
        b=b,
        settings=pair.frames[0].settings,
        matched_by="name" if pair.by_name else "index",
        classes=len(found.classes),
        tested=found.tested,
        tests=found.tests,
        only_a=pair.only[0],
        only_b=pair.only[1],
        without_maps=len(pair.classes) - len(found.classes),
        skipped=pair.skipped,
        notes=pair.notes,
        pairing=PAIRING,
        shared=found.shared,
        drifts=tuple(class_drifts(found)),
        versions=versions(),
    )
    runs = a.run_id, b.run_id
    table, table_bytes = parquet(comparison_columns(found), COMPARISON, runs)
    priors, priors_bytes = parquet(prior_columns(found), PRIORS, runs)
    page = compare_page(manifest, table, priors, found.everywhere)
    store.delete(MANIFEST)
    for path, data in ((TABLE, table_bytes), (PRIORS_TABLE, priors_bytes), (REPORT, page)):
        store.put(path, data)
    store.put(MANIFEST, document(manifest))
    return Comparison(store.uri, manifest, table, priors)


def _compared(side: _Side, state: Gathered, pair: Pair, place: int) -> ComparedLake:
    manifest, counts, series = side.lake.manifest, state.counts, pair.series[place]
    return ComparedLake(
        uri=side.lake.store.uri,
        run_id=manifest.run_id,
        finished=side.lake.finished,
        commits_digest=commits_digest(side.lake.commits.values()),
        model=manifest.model.name,
        model_digest=manifest.model.digest,
        method=series.method,
        layer=series.layer,
        units=counts["units"],
        images=counts["images"],
        maps=counts["maps"],
        counted=counts["counted"],
        regions=side.objects.about,
    )

"""A whole audit: parts from the lake, findings from the parts, and the audit's folder."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TextIO

import pyarrow as pa

from pipeline.audit.expressions import Expression
from pipeline.audit.findings.base import Evidence
from pipeline.audit.frame import Frame, make_frame
from pipeline.audit.freed import give_back
from pipeline.audit.gather import gather_here, gather_on_ray, interruptible
from pipeline.audit.groups import groups_table
from pipeline.audit.localisation_table import kept_localisation
from pipeline.audit.maps_zarr import maps_objects
from pipeline.audit.objects import Objects, open_objects
from pipeline.audit.outputs import (
    FAITHFULNESS_TABLE,
    FINDINGS_LIST,
    FINDINGS_TABLE,
    GROUPS_TABLE,
    LOCALISATION_TABLE,
    MANIFEST,
    REPORT,
    findings_json,
    findings_table,
    is_ours,
    parquet,
    ranked,
    write,
)
from pipeline.audit.parts_files import Chunk, Work, chunks, commits_digest, merged, storage_of, there
from pipeline.audit.progress import Progression, Seconds, Stopwatch
from pipeline.audit.report import Tables, write_report
from pipeline.engine.log import about
from pipeline.engine.metrics import Recorder
from pipeline.engine.run import versions
from pipeline.lake import Lake, LakeStore, open_lake
from schemas.audit import AuditManifest, Finding, Settings
from schemas.errors import InputError
from schemas.registries import FINDINGS, implementation

_PACKAGES = ("scipy", "scikit-learn", "jinja2")

Say = Callable[[str], None]


@dataclass(frozen=True)
class AuditResult:
    """What an audit found, and where it lies; ``seconds`` are those of its stages: pass, merge, findings, report."""

    output: str
    manifest: AuditManifest
    groups: pa.Table
    findings: list[Finding]
    tables: Tables
    seconds: Mapping[str, Seconds] = field(default_factory=dict)


def default_output(lake: LakeStore) -> str:
    """Return the folder of a lake's audit: beside the lake, which holds nothing but what its commits name.

    Raises:
        InputError: the lake is a whole bucket, which has nothing beside it.
    """
    if lake.kind in ("s3", "gcs") and "/" not in lake.root:
        raise InputError(f"{lake.uri} is a whole bucket, and the audit cannot lie in it; give a place with --output")
    return f"{lake.uri}.audit"


def run_audit(
    lake_uri: str,
    settings: Settings,
    output: str | None = None,
    *,
    say: Say,
    storage_options: Mapping[str, Any] | None = None,
    source_options: Mapping[str, Any] | None = None,
    workers: int | None = 0,
    connect: Callable[[], None] | None = None,
    causal: int = 0,
    faithfulness: int = 0,
    fail_on: Sequence[Expression] = (),
    stream: TextIO | None = None,
    most_maps: int | None = None,
) -> AuditResult:
    """Audit a lake, or go on where an audit of the same lake and settings stopped.

    The lake's units are cut into chunks, each of which leaves a part in ``OUTPUT/parts``, whose sums are integers: the
    same numbers come out for any number of workers, any order and any cut. Parts are written once and never changed;
    the rest is written anew by each call, ``audit.json`` last.

    Args:
        lake_uri: URI of the lake's folder, absolute.
        settings: of the audit.
        output: URI of the audit's folder. Default: the lake's with ``.audit`` appended.
        say: takes lines for people.
        storage_options: of the lake's file system, and of the output's where it is of the same kind.
        source_options: of the images' file system. Default: the lake's, where both are of one kind.
        workers: Ray tasks at a time; None: one per CPU; 0: no Ray, all in this process.
        connect: connects this process to Ray; called when something is left to do.
        causal: images per finding that are painted over and looked at again by the model; 0: none.
        faithfulness: images on which the methods are measured with the model, see
            :mod:`pipeline.audit.faithful`; 0: none. Done in this process; what is measured of an image is kept.
        fail_on: conditions that will be judged; those that cannot be are refused before anything is done.
        stream: where progress goes (default: stderr).
        most_maps: maps of a chunk. Default: by the lake's size.

    Raises:
        InputError: settings or output do not fit the lake.
        LakeError: a unit cannot be read; the parts of the others are kept.
        pipeline.audit.gather.Interrupted: SIGINT or SIGTERM came; the parts so far are kept.
    """
    with interruptible():
        lake = open_lake(lake_uri, storage_options)
        frame = make_frame(lake, settings)
        store = _output(lake.store, output, storage_options)
        objects = open_objects(frame.settings, lake)
        _judgeable(fail_on, objects.source is not None)
        found = chunks(lake, frame, objects, most_maps)
        say(f"lake      {lake.store.uri}: {len(lake.commits)} units, {frame.images} images" + _unfinished(lake))
        say(f"maps      of {_series(frame)}, targets: {frame.settings.targets}")
        say(f"objects   {objects.about or 'their places are not known; give --boxes or --masks'}")
        left = _left(store, found, say)
    if left and workers != 0 and connect is not None:
        connect()  # which installs handlers of its own
    watch = Stopwatch()
    with interruptible(), about(run_id=lake.manifest.run_id):
        work = Work(lake.store, store, lake.manifest, frame, objects.source)
        with watch.stage("pass"):
            _gather(work, left, sum(chunk.maps for chunk in found), workers, stream)
        with watch.stage("merge"):
            state = merged([(store, chunk) for chunk in found], frame)
            evidence = Evidence(frame, state, lake, state.sample.table, source_options or {})
        with watch.stage("localisation"):
            located = _localisation(evidence, store, objects, found, stream)
        with watch.stage("faithfulness"):
            tables = Tables(located, _faithfulness(evidence, store, faithfulness, say, stream))
        return _finish(evidence, store, objects, causal, tables, say, watch)


def _output(lake: LakeStore, output: str | None, options: Mapping[str, Any] | None) -> LakeStore:
    """Return the audit's folder, which must not lie in the lake: there, verify would call it foreign."""
    store = storage_of(lake, output or default_output(lake), options)
    if (store.kind, store.root) == (lake.kind, lake.root) or store.root.startswith(f"{lake.root}/"):
        raise InputError(f"--output '{store.uri}' lies in the lake; give a folder beside it, such as {lake.uri}.audit")
    if not store.exists(MANIFEST):
        for entry in store.list():
            if not is_ours(entry.path):
                raise InputError(
                    f"--output '{store.uri}' is no audit (it holds {entry.path}); give an empty or new folder"
                )
    return store


def _judgeable(expressions: Sequence[Expression], located: bool) -> None:
    for expression in expressions:
        if expression.regional and not located:
            raise InputError(
                f"--fail-on '{expression.text}': '{expression.name}' needs to know where objects are; "
                "give --boxes or --masks"
            )


def _finish(
    evidence: Evidence,
    store: LakeStore,
    objects: Objects,
    causal: int,
    tables: Tables,
    say: Say,
    watch: Stopwatch,
) -> AuditResult:
    """Make the findings and write all that is made of the parts."""
    if not evidence.classes:
        raise InputError(
            f"{evidence.lake.store.uri} has no map of {_series(evidence.frame)} whose target is as --targets says; "
            "give other --targets, --method or --layer"
        )
    with watch.stage("findings"):
        findings = _findings(evidence, causal, say)
    with watch.stage("report"):
        manifest = _manifest(evidence, objects.about, findings, tables)
        groups = groups_table(evidence.state.maps, evidence.frame)
        give_back()
        written = {
            GROUPS_TABLE: parquet(groups, manifest),
            FINDINGS_TABLE: parquet(findings_table(findings), manifest),
            FINDINGS_LIST: findings_json(findings),
            **maps_objects(evidence, evidence.parts.maps),
        }
        for path, table in ((LOCALISATION_TABLE, tables.localisation), (FAITHFULNESS_TABLE, tables.faithfulness)):
            if table is not None:
                written[path] = parquet(table, manifest)
        give_back()
        written[REPORT] = write_report(evidence, findings, groups, manifest, tables)
        write(store, written, manifest)
    return AuditResult(store.uri, manifest, groups, findings, tables, watch.seconds)


def _series(frame: Frame) -> str:
    series = frame.series[frame.primary]
    return f"{series.method} at {series.layer}"


def _unfinished(lake: Lake) -> str:
    missing = lake.manifest.units - len(lake.commits)
    return "" if lake.finished else f" (not finished: {missing} of {lake.manifest.units} units are not there yet)"


def _left(output: LakeStore, found: Sequence[Chunk], say: Say) -> list[Chunk]:
    """Return the chunks whose parts are missing."""
    have = there(output)
    left = [chunk for chunk in found if chunk.path not in have]
    notes = [f"{len(found)}, of which {len(found) - len(left)} are there"]
    others = len(have - {chunk.path for chunk in found})
    if others:
        notes.append(f"{others} of other settings or an older lake are left alone")
    say(f"parts     {', '.join(notes)}")
    return left


def _gather(work: Work, left: Sequence[Chunk], maps: int, workers: int | None, stream: TextIO | None) -> None:
    """Write the parts that are missing; ``maps`` are those of the whole lake."""
    if not left:
        return
    before = maps - sum(chunk.maps for chunk in left)
    with Progression(maps, before, stream) as progress:
        if workers == 0:
            gather_here(work, left, lambda chunk: progress.done(chunk.maps))
        else:
            recorder = Recorder(work.manifest.run_id)

            def done(chunk: Chunk) -> None:
                progress.done(chunk.maps)
                recorder.add("camlake_audit_maps_total", chunk.maps)
                recorder.add("camlake_audit_parts_total", 1)

            gather_on_ray(work, left, workers, done)


def _findings(evidence: Evidence, causal: int, say: Say) -> list[Finding]:
    """Return the findings of all kinds, the worst first."""
    findings: list[Finding] = []
    for name in FINDINGS:
        kind = implementation(FINDINGS, "finding", name).KIND
        findings += (kind() if isinstance(kind, type) else kind).find(evidence)
        give_back()
    if causal and findings:
        from pipeline.audit.causal import check_findings

        findings = check_findings(evidence, ranked(findings), images=causal, say=say)
    return ranked(findings)


def _localisation(
    evidence: Evidence, store: LakeStore, objects: Objects, found: Sequence[Chunk], stream: TextIO | None
) -> pa.Table | None:
    """Return how well the methods find objects, where objects are known of some map."""
    if objects.source is None or not evidence.state.counts["regions"]:
        return None
    return kept_localisation(evidence.lake, evidence.frame, objects.source, store, found, stream)


def _faithfulness(
    evidence: Evidence, store: LakeStore, images: int, say: Say, stream: TextIO | None
) -> pa.Table | None:
    """Return how faithful the methods are, where that is asked for and the model can be had."""
    if not images or not len(evidence.sample):
        return None
    from pipeline.audit.faithful import measure_faithfulness

    return measure_faithfulness(evidence, images, say=say, output=store, stream=stream)


def _manifest(evidence: Evidence, regions: str | None, findings: Sequence[Finding], tables: Tables) -> AuditManifest:
    lake, frame, counts = evidence.lake, evidence.frame, evidence.state.counts
    series = frame.series[frame.primary]
    return AuditManifest(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        lake=lake.store.uri,
        lake_run_id=lake.manifest.run_id,
        lake_finished=lake.finished,
        commits_digest=commits_digest(lake.commits.values()),
        settings=frame.settings,
        method=series.method,
        layer=series.layer,
        units=counts["units"],
        images=counts["images"],
        maps=counts["maps"],
        counted=counts["counted"],
        classes=len(evidence.classes),
        findings=len(findings),
        regions=regions,
        localisation=0 if tables.localisation is None else max(tables.localisation["maps"].to_pylist()),
        faithfulness=0 if tables.faithfulness is None else max(tables.faithfulness["n"].to_pylist()),
        versions=versions() | _versions(),
    )


def _versions() -> dict[str, str]:
    """Versions of the libraries that only the audit uses."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found

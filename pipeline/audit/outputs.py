"""What an audit leaves in its folder: tables, maps, the report, and the manifest last."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from pipeline.audit.maps_zarr import FOLDER
from pipeline.audit.parts_files import FOLDER as PARTS
from pipeline.lake import LakeStore
from pipeline.lake.local import PARTIAL_SUFFIX
from pipeline.lake.parallel import ahead
from schemas.audit import FINDINGS, AuditManifest, Finding

MANIFEST = "audit.json"
GROUPS_TABLE = "groups.parquet"
FINDINGS_TABLE = "findings.parquet"
FINDINGS_LIST = "findings.json"
LOCALISATION_TABLE = "localisation.parquet"
FAITHFULNESS_TABLE = "faithfulness.parquet"
REPORT = "report.html"
#: Tables that only some calls write.
_SOMETIMES = (LOCALISATION_TABLE, FAITHFULNESS_TABLE)
_OURS = (MANIFEST, GROUPS_TABLE, FINDINGS_TABLE, FINDINGS_LIST, *_SOMETIMES, REPORT)


def is_ours(path: str) -> bool:
    """Say whether an audit writes an object of this path."""
    return path in _OURS or path.startswith((f"{FOLDER}/", f"{PARTS}/")) or path.endswith(PARTIAL_SUFFIX)


def ranked(findings: Sequence[Finding]) -> list[Finding]:
    """Return findings, the worst first; of equals by their ids.

    Raises:
        ValueError: two have the same id.
    """
    ids = [finding.finding_id for finding in findings]
    twice = sorted({each for each in ids if ids.count(each) > 1}) if len(set(ids)) < len(ids) else []
    if twice:
        raise ValueError(f"two findings have the id '{twice[0]}'")
    return sorted(findings, key=lambda finding: (-finding.severity, finding.finding_id))


def findings_table(findings: Sequence[Finding]) -> pa.Table:
    """Return ranked findings as the table :data:`schemas.audit.FINDINGS`; ``causal`` and ``details`` are JSON."""
    rows = []
    for place, finding in enumerate(findings):
        row = json.loads(finding.model_dump_json())
        row |= {
            "position": place,
            "causal": None if finding.causal is None else finding.causal.model_dump_json(),
            "details": json.dumps(row["details"], sort_keys=True),
        }
        rows.append(row)
    return pa.table(
        {field.name: pa.array([row[field.name] for row in rows], field.type) for field in FINDINGS}, FINDINGS
    )


def findings_json(findings: Sequence[Finding]) -> bytes:
    """Return ranked findings as a JSON list of :class:`schemas.audit.Finding`."""
    return json.dumps([json.loads(finding.model_dump_json()) for finding in findings], indent=1).encode()


def parquet(table: pa.Table, manifest: AuditManifest) -> bytes:
    """Return a table as a Parquet file."""
    metadata = {"camlake_audit_version": str(manifest.audit_version), "run_id": manifest.lake_run_id}
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), buffer, compression="zstd")
    return buffer.getvalue()


def write(store: LakeStore, objects: Mapping[str, bytes], manifest: AuditManifest) -> None:
    """Write all of an audit over what an earlier call left; whoever finds the manifest finds all of it.

    Raises:
        LakeError: the store failed.
    """
    store.delete(MANIFEST)
    stale = [entry.path for entry in store.list(FOLDER) if entry.path not in objects]
    stale += [path for path in _SOMETIMES if path not in objects]
    for _ in ahead(store.delete, stale):
        pass
    for _ in ahead(lambda path: store.put(path, objects[path]), sorted(objects)):
        pass
    store.put(MANIFEST, document(manifest))


def document(value: BaseModel) -> bytes:
    """Return a document as JSON."""
    return value.model_dump_json(indent=1).encode()

"""The audit's report: one HTML file that opens from disk, loads nothing and stays under 15 MB."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.audit.findings.base import Evidence
from pipeline.audit.report.tables import NO_TABLES, Tables
from schemas.audit import AuditManifest, Finding
from schemas.errors import InputError


def write_report(
    evidence: Evidence,
    findings: Sequence[Finding],
    groups: pa.Table,
    manifest: AuditManifest,
    tables: Tables = NO_TABLES,
    *,
    fetch: Callable[[Mapping[str, Any]], bytes] | None = None,
) -> bytes:
    """Return the report as HTML in UTF-8: summary, findings, classes, groups, methods and limits.

    Args:
        evidence: what the findings drew on; its lake is asked for the pictures behind them.
        findings: in any order; they are ranked by severity.
        groups: rows of :data:`schemas.audit.GROUPS`.
        manifest: of the audit.
        tables: how well methods find objects and mark what the model uses, where that was measured.
        fetch: returns the encoded bytes of an image, given its row of the images table. Default: the evidence's
            originals. An image that cannot be had is shown by its bare heatmap, with a note.

    Returns:
        At most 15,000,000 bytes, whatever the size of the lake: the findings of lowest rank, the smallest classes and
        groups, and pictures are left out where needed, and the page says so. Names from the data are text throughout.

    Raises:
        InputError: jinja2 or scikit-learn is not installed.
        LakeError: the lake's tables are damaged.
    """
    if importlib.util.find_spec("jinja2") is None:
        raise InputError("the audit's report needs jinja2; install it: pip install 'camlake[audit]'")
    from pipeline.audit.report.page import make_page

    return make_page(evidence, findings, groups, manifest, fetch, tables=tables)


__all__ = ["Tables", "write_report"]

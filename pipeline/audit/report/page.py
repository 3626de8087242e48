"""The page: everything put together in one HTML file that loads nothing."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import resources
from typing import Any

import numpy as np
import pyarrow as pa
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from pipeline.audit.findings.base import Evidence
from pipeline.audit.outputs import ranked
from pipeline.audit.report.exemplars import exemplars
from pipeline.audit.report.figures import effect_text
from pipeline.audit.report.limits import PAGE_BYTES, Limits
from pipeline.audit.report.montage import Montage, key_of, montage
from pipeline.audit.report.pack import clean, packed_maps, quantised, script_json
from pipeline.audit.report.payload import agreement, payload, side_by_side
from pipeline.audit.report.shown import shown_findings
from pipeline.audit.report.sums import numbers_of
from pipeline.audit.report.tables import NO_TABLES, Tables, method_tables
from pipeline.audit.report.words import BANDS, band, counted, kind_label, measure_label
from pipeline.lake.sheet import Fetch
from schemas.audit import MEASURE_INDEX, MEASURES, AuditManifest, Finding, ImageRef

#: Bytes kept free for the references to pictures.
_MARGIN = 600_000
#: Least bytes for pictures; where less is left, other parts are cut.
_PICTURES = 1_500_000
#: Findings that get more pictures than others, pictures of each, and classes with exemplars.
_FIRST, _MANY, _FEW, _EXEMPLARS = 20, 12, 4, 200
_TARGETS = {"predicted": "of the predicted class", "label": "of the label", "all": "of all targets"}
_SHOWN_MEANS = ("effective_area", "gini", "border_enrichment", "corner_enrichment", "energy", "enrichment", "pointing")


def make_page(
    evidence: Evidence,
    findings: Sequence[Finding],
    groups: pa.Table,
    manifest: AuditManifest,
    fetch: Fetch | None,
    limits: Limits | None = None,
    *,
    tables: Tables = NO_TABLES,
) -> bytes:
    """Return the page as UTF-8, at most :data:`~pipeline.audit.report.limits.PAGE_BYTES` long."""
    limits = limits or Limits()
    while True:
        page = _Page(evidence, findings, groups, manifest, limits, tables)
        room = PAGE_BYTES - _MARGIN - len(page.render(Montage()))
        if room >= _PICTURES or limits.classes == 1:
            break
        limits = limits.halved()
    pictures = montage(
        evidence,
        page.wanted(),
        most_bytes=max(0, min(limits.pictures, room)),
        most=limits.picture_count,
        fetch=fetch,
    )
    return page.render(pictures)


class _Page:
    def __init__(
        self,
        evidence: Evidence,
        findings: Sequence[Finding],
        groups: pa.Table,
        manifest: AuditManifest,
        limits: Limits,
        tables: Tables,
    ) -> None:
        self.evidence, self.manifest, self.limits = evidence, manifest, limits
        self.tables = method_tables(tables, limits)
        self.all = ranked(list(findings))
        self.findings = self.all[: limits.findings]
        self.about = [each.target_class for each in self.findings if each.target_class is not None]
        self.numbers = numbers_of(evidence, groups, limits, self.about)
        self.series = side_by_side(evidence, groups)
        self.data = payload(evidence, self.numbers, limits)
        self.data["parts"] = self._parts()
        self.exemplars = dict(exemplars(evidence, self._exemplar_classes()))

    def _exemplar_classes(self) -> list[int]:
        size = dict(zip(self.numbers.classes, self.numbers.by_class.n.tolist(), strict=True))
        first = [each for each in dict.fromkeys(self.about) if each in size]
        rest = sorted(set(size) - set(first), key=lambda each: (-size[each], each))
        return (first + rest)[:_EXEMPLARS]

    def _parts(self) -> dict[str, Any] | None:
        sample = self.evidence.sample
        if not len(sample):
            return None
        parts = self.evidence.parts
        if not len(parts.maps):
            return None
        target = sample["target_class"].to_numpy()
        mean = np.full((len(self.numbers.classes), len(parts.maps)), np.nan)
        for row, each in enumerate(self.numbers.classes):
            start, stop = np.searchsorted(target, [each, each + 1])
            if stop - start >= self.evidence.frame.settings.suppressed_below:
                mean[row] = parts.loadings[start:stop].mean(0)
        return {
            "maps": packed_maps(parts.maps),
            "all": parts.loadings.mean(0).round(5).tolist(),
            "by_class": quantised(mean),
        }

    def wanted(self) -> Iterator[ImageRef]:
        """Yield the references to pictures, the most important ones first."""
        first, rest = self.findings[:_FIRST], self.findings[_FIRST:]
        about = {each.target_class for each in first}
        for finding in first:
            yield from finding.images[:_MANY]
        for target, references in self.exemplars.items():
            if target in about:
                yield from references
        for finding in rest:
            yield from finding.images[:_FEW]
        for references in self.exemplars.values():
            yield from references
        for finding in self.findings:
            yield from finding.images

    def render(self, pictures: Montage) -> bytes:
        """Return the page with these pictures."""
        evidence, manifest, limits = self.evidence, self.manifest, self.limits
        settings = manifest.settings
        shown = shown_findings(evidence, self.findings, pictures.places, limits)
        data = {
            **self.data,
            "pictures": pictures.entries,
            "findings": [
                {
                    "number": each["number"],
                    "title": each["title"],
                    "kind": each["kind_label"],
                    "band": each["band"].key,
                    "class": each["target_class"],
                    "n": each["n"],
                    "q": finding.q,
                    "effect": each["effect"],
                    "pictures": [[picture["place"], picture["note"]] for picture in each["pictures"]],
                    "images": each["images"],
                    "maps": each["maps"],
                }
                for each, finding in zip(shown, self.findings, strict=True)
            ],
            "exemplars": {
                str(target): [
                    [pictures.places[key_of(each)], each.note] for each in references if key_of(each) in pictures.places
                ]
                for target, references in self.exemplars.items()
            },
        }
        style, script = _resource("style.css"), _resource("script.js")
        environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        text = environment.from_string(_resource("page.html.j2")).render(
            csp=_policy(style, script),
            style=Markup(style),
            script=Markup(script),
            data=Markup(script_json(data)),
            manifest=_plain_manifest(manifest, limits),
            settings=settings,
            lake_name=_title(manifest.lake, 2 * limits.name),
            created=manifest.created[:16].replace("T", " "),
            about=self._about(),
            verdict=_verdict(self.all, self._testable()),
            coverage=self._coverage(),
            bands=_bands(self.all),
            tiles=self._tiles(),
            audited=self._audited(),
            findings=shown,
            finding_count=len(self.all),
            findings_left_out=len(self.all) - len(self.findings),
            kinds=_kinds(self.findings),
            attributes=self.data["attributes"],
            total_maps=int(self.numbers.total.n.sum()),
            sample_rows=len(evidence.sample),
            measures=self._measures(),
            series=self._series(),
            series_measures=[measure_label(name) for name in self._compared()],
            agreement=[
                (clean(a, limits.name), clean(b, limits.name), value, n) for a, b, value, n in agreement(evidence)[:30]
            ],
            method_tables=self.tables,
            made_with=[(clean(name, 60), clean(value, 60)) for name, value in sorted(manifest.versions.items())],
            picture_note=_picture_note(pictures),
        )
        return text.encode()

    def _tiles(self) -> list[tuple[str, str, str]]:
        numbers, manifest, settings = self.numbers, self.manifest, self.manifest.settings
        right, wrong = int(numbers.by_class.right.sum()), int(numbers.by_class.wrong.sum())
        tiles = [
            ("Images", f"{manifest.images:,}", f"in {counted(manifest.units, 'unit')}"),
            ("Maps", f"{int(numbers.total.n.sum()):,}", f"{manifest.maps:,} of all methods and targets"),
            ("Classes", f"{manifest.classes:,}", f"{self._testable():,} with {settings.flagged_from:,} maps or more"),
        ]
        if right + wrong:
            tiles.append(
                ("Predicted right", f"{right / (right + wrong):.1%}", f"of {right + wrong:,} maps with a label")
            )
        if len(numbers.total):
            for name, note in (("border_enrichment", "uniform: ×1"), ("energy", "of the evidence")):
                value = float(numbers.total.mean[0, MEASURE_INDEX[name]])
                if np.isfinite(value):
                    kind = "ratio" if name == "border_enrichment" else "share"
                    tiles.append((measure_label(name), effect_text(value, kind), note))
            flagged = int(numbers.total.flagged[0])
            tiles.append(("Degenerate maps", f"{flagged / max(1, int(numbers.total.n[0])):.2%}", f"{flagged:,} maps"))
        return tiles

    def _testable(self) -> int:
        """Classes with enough maps to be flagged."""
        return int((self.numbers.by_class.n >= self.manifest.settings.flagged_from).sum())

    def _coverage(self) -> str:
        """Say what could not be judged for want of maps."""
        enough, least, classes = self._testable(), self.manifest.settings.flagged_from, self.manifest.classes
        if enough == classes:
            return ""
        if not enough:
            return (
                f"No class has the {least:,} maps from which one may be flagged, so only all images together could be "
                "judged: explain more images, or lower --flagged-from and trust it less."
            )
        return f"{enough:,} of {classes:,} classes have the {least:,} maps from which one may be flagged."

    def _about(self) -> str:
        """Say in a sentence what was audited."""
        manifest, settings, model = self.manifest, self.manifest.settings, self.evidence.lake.manifest.model
        objects = f"objects from {manifest.regions}" if manifest.regions else "where the objects are is not known"
        groups = f"; compared by {', '.join(settings.groups)}" if settings.groups else ""
        targets, state = (
            _TARGETS.get(settings.targets or "", ""),
            "" if manifest.lake_finished else "; not finished yet",
        )
        text = (
            f"Heatmaps of {manifest.method} at {manifest.layer} of {model.name}, {targets}; {objects}{groups}{state}."
        )
        return clean(text, 600)

    def _audited(self) -> list[tuple[str, str]]:
        manifest, settings = self.manifest, self.manifest.settings
        found = [
            ("Lake", manifest.lake),
            ("Run", f"{manifest.lake_run_id}{'' if manifest.lake_finished else ' (not finished yet)'}"),
            ("Method and layer", f"{manifest.method}, {manifest.layer}"),
            ("Maps that count", _TARGETS.get(settings.targets or "", "as the lake has them")),
            ("Groups", ", ".join(settings.groups) or "none"),
            ("Rows depend on each other by", settings.cluster or "nothing: each image by itself"),
            ("Where the objects are", manifest.regions or "not given, so nothing is said about maps off the object"),
            ("Commits", manifest.commits_digest),
        ]
        return [(name, clean(value, 400)) for name, value in found]

    def _measures(self) -> list[dict[str, Any]]:
        total = self.numbers.total
        found = []
        for index, measure in enumerate(MEASURES):
            mean = float(total.mean[0, index]) if len(total) else float("nan")
            found.append(
                {
                    "label": measure_label(measure.name),
                    "name": measure.name,
                    "doc": measure.doc,
                    "regional": measure.regional,
                    "range": f"{measure.low:.3g} to {measure.high:.3g}".replace("-", "−"),
                    "mean": _number(mean),
                }
            )
        return found

    def _compared(self) -> list[str]:
        return [name for name in _SHOWN_MEANS if any(name in each["means"] for each in self.series)]

    def _series(self) -> list[dict[str, Any]]:
        names = self._compared()
        return [
            {
                "method": clean(each["method"], self.limits.name),
                "layer": clean(each["layer"], self.limits.name),
                "primary": each["primary"],
                "n": f"{each['n']:,}",
                "means": [_number(each["means"].get(name, float("nan"))) for name in names],
            }
            for each in self.series[:100]
        ]


def _number(value: float) -> str:
    return f"{value:.3g}".replace("-", "−") if np.isfinite(value) else "–"


def _title(uri: str, most: int) -> str:
    """Return what a lake is called: its folder, and the one above where the folder is just called lake."""
    parts = [part for part in uri.split("://")[-1].split("/") if part]
    kept = parts[-2:] if parts and parts[-1] in ("lake", "output") else parts[-1:]
    return clean("/".join(kept) or uri, most)


def _plain_manifest(manifest: AuditManifest, limits: Limits) -> dict[str, Any]:
    return {
        "classes": manifest.classes,
        "method": clean(manifest.method, limits.name),
        "layer": clean(manifest.layer, limits.name),
    }


def _verdict(findings: Sequence[Finding], testable: int) -> dict[str, str]:
    """Return the summary's heading, what follows it, and its band; ``testable``: classes with enough maps."""
    count = Counter(band(each.severity).key for each in findings)
    serious, total = count["serious"], len(findings)
    if not total:
        return {
            "band": "none" if testable else "minor",
            "text": "Nothing above the thresholds." if testable else "Too few images to judge.",
            "more": "That is no proof that there is nothing: see methods and limits." if testable else "",
        }
    used = sum(each.causal is not None and each.causal.used for each in findings)
    more = f"{counted(total, 'finding')} in all. " if serious not in (0, total) else ""
    if used:
        more += f"For {used}, a causal check shows that the model uses what was found."
    elif any(each.kind == "shortcut" for each in findings):
        more += "Shortcuts are candidates: no causal check shows that the model uses them."
    worst = band(findings[0].severity).key
    if serious:
        text = f"{counted(serious, 'serious finding')}."
    elif testable:
        text = f"Nothing serious; {counted(total, 'finding')} to look at."
    else:
        text = f"{counted(total, 'finding')} to look at; the classes could not be judged."
    return {"band": worst, "text": text, "more": more}


def _bands(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    count = Counter(band(each.severity).key for each in findings)
    return [{"key": each.key, "name": each.name, "count": count[each.key], "least": each.least} for each in BANDS]


def _kinds(findings: Sequence[Finding]) -> list[tuple[str, str, int]]:
    return [(kind, kind_label(kind), n) for kind, n in Counter(each.kind for each in findings).most_common()]


def _picture_note(pictures: Montage) -> str:
    if not pictures.missing:
        return ""
    return (
        f"{counted(pictures.missing, 'picture')} could not be had, so the bare heatmap is shown instead. The first "
        f"reason: {pictures.reason}"
    )


def _policy(style: str, script: str) -> str:
    """Nothing is loaded from anywhere, and only this page's own style and script count."""

    def digest(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return "; ".join(
        (
            "default-src 'none'",
            "img-src data:",
            f"style-src {digest(style)}",
            f"script-src {digest(script)}",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
        )
    )


def _resource(name: str) -> str:
    return (resources.files(__package__) / name).read_text("utf-8")

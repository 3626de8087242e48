"""Maps that say nothing: all zero, constant, or not finite."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pyarrow.dataset as ds

from pipeline.audit.cells import EVERYTHING
from pipeline.audit.contrast import by_group
from pipeline.audit.findings.base import Evidence, FindingKind, image_refs, severity
from pipeline.audit.findings.samples import plural
from pipeline.audit.intervals import wilson
from schemas.audit import Finding, ImageRef
from schemas.tables import FLAGS

Counts = npt.NDArray[np.int64]

_WORDS = {"all_zero": "zero throughout", "constant": "the same number throughout", "not_finite": "not finite (NaN)"}
#: Rates, of all maps and of one class's, whose lower bound makes a finding; what is not finite always does.
_RATE = 0.01
_CLASS_RATE = 0.05
#: Rate at which the severity is full.
_GRAVE = 0.5
_WEIGHT = 0.4
_WORST = 10
_SHOWN = 12
#: Rates below this leave images unshown: looking for them would read the whole table.
_RARE = 1e-3
_REMEDIES = {
    "all_zero": (
        "The method found nothing that speaks for the class. Leave these maps out of averages, and look at the classes "
        "named here, or take a method that also shows what speaks against a class."
    ),
    "constant": "The layer is too late or too small for this method: choose an earlier layer.",
    "not_finite": "Numbers overflowed: run the model in float32, and look for damaged weights or images.",
}


class Degenerate(FindingKind):
    """Rates of degenerate maps, of each method and layer."""

    name = "degenerate"

    def find(self, evidence: Evidence) -> list[Finding]:
        """Return at most one finding per series, with the classes that have most; zero maps are not also constant."""
        return [
            finding for series in range(len(evidence.frame.series)) for finding in self._of_series(evidence, series)
        ]

    def _of_series(self, evidence: Evidence, series: int) -> list[Finding]:
        settings = evidence.frame.settings
        least = max(settings.flagged_from, settings.interval_from)
        groups = by_group(evidence.state.maps, series)
        classes = [target for attribute, target in groups if attribute == EVERYTHING]
        if not classes:
            return []
        cells = [groups[EVERYTHING, target][""] for target in classes]
        rows = np.array([sum(cell.rows for cell in each) for each in cells], np.int64)
        flags = np.array([sum(cell.sums["flags"] for cell in each) for each in cells], np.int64)
        # A map of zeros is constant as well; it is told once.
        flags[:, 1] = np.maximum(0, flags[:, 1] - flags[:, 0])
        total, counts = int(rows.sum()), flags.sum(0)
        lead = int(np.argmax(np.where(counts > 0, counts + (total + 1) * np.array([0, 0, 1]), 0)))
        bad = np.minimum(flags.sum(1), rows)
        low, high = wilson(int(bad.sum()), total)
        class_low, _ = wilson(bad, rows)
        raised = (rows >= least) & (class_low >= _CLASS_RATE)
        if not (counts[2] or (total >= least and low >= _RATE) or raised.any()):
            return []
        return [self._finding(evidence, series, classes, rows, flags, raised, lead, (float(low), float(high)))]

    def _finding(
        self,
        evidence: Evidence,
        series: int,
        classes: list[int],
        rows: Counts,
        flags: Counts,
        raised: npt.NDArray[np.bool_],
        lead: int,
        interval: tuple[float, float],
    ) -> Finding:
        frame, (method, layer) = evidence.frame, evidence.frame.series[series]
        bad, total = np.minimum(flags.sum(1), rows), int(rows.sum())
        count, flag, (low, high) = int(bad.sum()), FLAGS[lead], interval
        rate = bad / np.maximum(rows, 1)
        # Where no class stands out, those with most of these maps are shown.
        order = np.lexsort((np.array(classes), -np.where(raised, rate, rate * 1e-3)))[:_WORST]
        worst = [row for row in order.tolist() if bad[row] and rows[row] >= frame.settings.suppressed_below]
        parts = ", ".join(
            f"{int(number):,} {_WORDS[name]}" for name, number in zip(FLAGS, flags.sum(0), strict=True) if number
        )
        most = f"; most for '{frame.name(classes[worst[0]])}', {rate[worst[0]]:.1%}" if worst else ""
        strength = max(count / total, float(rate[raised].max(initial=0.0)) / 2) / _GRAVE
        return Finding(
            finding_id=f"{self.name}:{method}:{layer}",
            kind=self.name,
            title=f"{method} ({layer}): maps that say nothing",
            sentence=(
                f"{count / total:.2%} of the maps of {method} at {layer} say nothing (95% interval {low:.2%} to "
                f"{high:.2%}, {plural(total, 'map')}): {parts}{most}."
            ),
            remedy=" ".join(_REMEDIES[name] for name, number in zip(FLAGS, flags.sum(0), strict=True) if number),
            severity=severity(max(strength, 0.25 if flag == "not_finite" else 0.0), _WEIGHT),
            measure=flag,
            effect=count / total,
            effect_name="share",
            low=low,
            high=high,
            n=total,
            images=_images(evidence, series, flag) if count / total >= _RARE else (),
            details={
                "counts": {name: int(number) for name, number in zip(FLAGS, flags.sum(0), strict=True)},
                "classes": [
                    {
                        "target_class": classes[row],
                        "target_name": frame.name(classes[row]),
                        "share": float(rate[row]),
                        "interval": [float(end) for end in wilson(int(bad[row]), int(rows[row]))],
                        "n": int(rows[row]),
                    }
                    for row in worst
                ],
            },
        )


def _images(evidence: Evidence, series: int, flag: str) -> tuple[ImageRef, ...]:
    """Look up a few; the sample holds none, since they have no mass."""
    method, layer = evidence.frame.series[series]
    condition: ds.Expression = (pc.field("method") == method) & (pc.field("layer") == layer) & pc.field(flag)
    counted = {"predicted": "is_predicted", "label": "is_label"}.get(evidence.frame.settings.targets or "")
    if counted is not None:
        condition &= pc.field(counted)
    names = ["image_id", "unit_id", "target_class", "store_path", "store_row"]
    return image_refs(evidence.lake.maps.head(_SHOWN, columns=names, filter=condition), _WORDS[flag], _SHOWN)


KIND = Degenerate()

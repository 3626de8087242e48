"""Classes whose maps lie on the border or in the corners of the picture."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.audit.cells import EVERYTHING
from pipeline.audit.contrast import Contrast, Sums, by_group, strength_of_ratio
from pipeline.audit.findings.base import Evidence, FindingKind, image_refs, severity
from pipeline.audit.findings.samples import largest, numbers, of_class, plural
from pipeline.audit.intervals import benjamini_hochberg, bootstrap_p, percentile_interval
from schemas.audit import MEASURE_INDEX, UNIFORM_BORDER, UNIFORM_CORNER, Finding

Floats = npt.NDArray[np.float64]

#: Measure -> (share of the mass that a uniform map has there, what the place is called).
PLACES = {
    "border_enrichment": (UNIFORM_BORDER, "along the border"),
    "corner_enrichment": (UNIFORM_CORNER, "in the corners"),
}
_NAMES = tuple(PLACES)
_UNIFORM = np.array([uniform for uniform, _ in PLACES.values()])
_WEIGHT = 0.7
_REMEDY = (
    "Look at the edges of these images for frames, bars, time stamps, logos or rulers; crop them, or give all classes "
    "the same. If nothing is there, the network's padding may be the cause: compare another layer or method."
)


class Border(FindingKind):
    """Each class against the other classes together, and all maps against a uniform map."""

    name = "border"

    def find(self, evidence: Evidence) -> list[Finding]:
        """Return at most one finding per class, and one about all maps; tests: (classes + 1) x 2."""
        settings = evidence.frame.settings
        least = max(settings.flagged_from, settings.interval_from)
        groups = by_group(evidence.state.maps, evidence.frame.primary)
        classes = [target for attribute, target in groups if attribute == EVERYTHING]
        if not classes:
            return []
        sums = Sums.of([groups[EVERYTHING, target][""] for target in classes], [MEASURE_INDEX[name] for name in _NAMES])
        contrast = Contrast(sums, sums.others())
        everything = sums.together()
        p = np.concatenate([contrast.p(least), _against_uniform(everything, least)])
        q = benjamini_hochberg(p)
        # A ratio to next to nothing says little, so the share of the mass must differ as well.
        far = (contrast.ratio >= settings.effect_ratio) & (contrast.difference * _UNIFORM >= settings.effect_energy)
        flagged = far & (q[:-1] < settings.q)
        found = [
            self._of_class(evidence, target, contrast, row, np.flatnonzero(flagged[row]).tolist(), p, q)
            for row, target in enumerate(classes)
            if flagged[row].any()
        ]
        overall = (everything.mean[0] >= settings.effect_ratio) & (q[-1] < settings.q)
        if overall.any():
            found.append(
                self._of_all(evidence, everything, int(np.argmax(np.where(overall, everything.mean[0], 0))), p, q)
            )
        return found

    def _of_class(
        self,
        evidence: Evidence,
        target: int,
        contrast: Contrast,
        row: int,
        measures: list[int],
        p: Floats,
        q: Floats,
    ) -> Finding:
        measures = sorted(measures, key=lambda measure: -contrast.ratio[row, measure])
        lead = measures[0]
        measure, (uniform, place) = _NAMES[lead], PLACES[_NAMES[lead]]
        ratio = float(contrast.ratio[row, lead])
        low, high = contrast.ratio_interval(row, lead)
        own, other = float(contrast.mean[row, lead]) * uniform, float(contrast.other_mean[row, lead]) * uniform
        name, n = evidence.frame.name(target), int(contrast.n[row, lead])
        rows = of_class(evidence.sample, target)
        return Finding(
            finding_id=f"{self.name}:{target}",
            kind=self.name,
            title=f"'{name}': evidence {place}",
            sentence=(
                f"For '{name}', {own:.0%} of the evidence lies {place} of the picture, against {other:.0%} for the "
                f"other classes: {ratio:.1f} times as much (95% interval {low:.1f} to {high:.1f}, {plural(n, 'map')})."
            ),
            remedy=_REMEDY,
            severity=severity(strength_of_ratio(ratio), _WEIGHT),
            target_class=target,
            target_name=name,
            measure=measure,
            effect=ratio,
            effect_name="ratio",
            low=low,
            high=high,
            p=float(p[row, lead]),
            q=float(q[row, lead]),
            n=n,
            reference_n=int(contrast.other_n[row, lead]),
            images=image_refs(largest(rows, numbers(rows, measure)), f"evidence {place}"),
            details={
                "share": own,
                "other_share": other,
                "uniform_share": uniform,
                "measures": {
                    _NAMES[each]: {"ratio": float(contrast.ratio[row, each]), "q": float(q[row, each])}
                    for each in measures
                },
            },
        )

    def _of_all(self, evidence: Evidence, sums: Sums, lead: int, p: Floats, q: Floats) -> Finding:
        measure, (uniform, place) = _NAMES[lead], PLACES[_NAMES[lead]]
        mean, n = float(sums.mean[0, lead]), int(sums.count[0, lead])
        low, high = percentile_interval(sums.resampled[0, lead])
        return Finding(
            finding_id=f"{self.name}:all",
            kind=self.name,
            title=f"All classes: evidence {place}",
            sentence=(
                f"Over all classes, {mean * uniform:.0%} of the evidence lies {place} of the picture, where a map "
                f"without any preference would have {uniform:.0%}: {mean:.1f} times as much (95% interval {low:.1f} to "
                f"{high:.1f}, {plural(n, 'map')})."
            ),
            remedy=_REMEDY,
            severity=severity(strength_of_ratio(mean), _WEIGHT),
            measure=measure,
            effect=mean,
            effect_name="ratio",
            low=low,
            high=high,
            p=float(p[-1, lead]),
            q=float(q[-1, lead]),
            n=n,
            images=image_refs(largest(evidence.sample, numbers(evidence.sample, measure)), f"evidence {place}"),
            details={"share": mean * uniform, "uniform_share": uniform},
        )


def _against_uniform(sums: Sums, least: int) -> Floats:
    """Return p (1, M) that the mean over all maps is a uniform map's, which is 1."""
    p = bootstrap_p(sums.mean - 1, sums.resampled - 1, sums.clusters - 1)
    return np.where(sums.count >= least, p, np.nan)


KIND = Border()

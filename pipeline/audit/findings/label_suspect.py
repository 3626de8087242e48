"""Images whose label may be wrong: the model is sure of another class, and looks at one thing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.audit.findings.base import Evidence, FindingKind, severity
from pipeline.audit.findings.samples import numbers, plural, where
from pipeline.audit.intervals import at_least_p, benjamini_hochberg, wilson
from schemas.audit import OUTCOMES, Finding, ImageRef, Settings

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

#: Images in one finding.
_MOST = 50
#: Suspects below which nothing is said: every model errs now and then.
_FEWEST = 3
_WEIGHT = 0.5
#: Rate of suspects at which the severity is full.
_GRAVE = 0.2
_REMEDY = (
    "Look at these images, the first ones first, and correct or remove what is labelled wrongly; some may show both "
    "classes. Then train again."
)


class LabelSuspect(FindingKind):
    """Ranks wrong and confident predictions of the sample whose maps are focused."""

    name = "label_suspect"

    def find(self, evidence: Evidence) -> list[Finding]:
        """Return one finding per label with clearly more suspects than the others, and one for those of all others.

        The sample holds the same number of maps of each explained class, so in frequent classes rates are of the
        sample, not of the lake.
        """
        settings = evidence.frame.settings
        rows = _judged(evidence.sample)
        if len(rows) < settings.flagged_from:
            return []
        suspect, label = _suspects(rows, settings), numbers(rows, "label").astype(np.int64)
        labels, place = np.unique(label, return_inverse=True)
        n = np.bincount(place).astype(np.float64)
        hits = np.bincount(place, suspect).astype(np.float64)
        p = _more_than_others(hits, n, max(settings.flagged_from, settings.interval_from))
        q = benjamini_hochberg(p)
        others = (hits.sum() - hits) / np.maximum(n.sum() - n, 1)
        flagged = (q < settings.q) & (hits / n >= settings.effect_ratio * others) & (hits >= _FEWEST)
        found = [
            self._finding(
                evidence,
                where(rows, suspect & (place == row)),
                int(n[row]),
                int(labels[row]),
                float(p[row]),
                float(q[row]),
            )
            for row in np.flatnonzero(flagged).tolist()
        ]
        rest = ~flagged[place]
        if int((suspect & rest).sum()) >= _FEWEST:
            found.append(self._finding(evidence, where(rows, suspect & rest), int(rest.sum()), None, None, None))
        return found

    def _finding(
        self, evidence: Evidence, suspects: pa.Table, n: int, label: int | None, p: float | None, q: float | None
    ) -> Finding:
        order = np.lexsort((-numbers(suspects, "predicted_probability"), numbers(suspects, "label_probability")))
        suspects = suspects.take(pa.array(order))
        rate = len(suspects) / n
        low, high = wilson(len(suspects), n)
        name = None if label is None else evidence.frame.name(label)
        of, sure = "" if name is None else f" labelled '{name}'", f"{evidence.frame.settings.confident:.0%}"
        return Finding(
            finding_id=f"{self.name}:{'rest' if label is None else label}",
            kind=self.name,
            title="Labels to look at" if name is None else f"Label '{name}': labels to look at",
            sentence=(
                f"Of {plural(n, 'sampled image')}{of}, {len(suspects):,} ({rate:.1%}, 95% interval {low:.1%} to "
                f"{high:.1%}) are taken for another class with {sure} confidence or more while "
                "the evidence lies on one thing: their labels may be wrong."
            ),
            remedy=_REMEDY,
            severity=severity(rate / _GRAVE, _WEIGHT),
            target_class=label,
            target_name=name,
            measure="label_probability",
            effect=rate,
            effect_name="share",
            low=low,
            high=high,
            p=p,
            q=q,
            n=n,
            images=_refs(evidence, suspects),
            details={"suspects": len(suspects), "sampled": n, "confident": evidence.frame.settings.confident},
        )


def _judged(sample: pa.Table) -> pa.Table:
    """Return one row per image with a label and a prediction: the predicted class's map, where there is one."""
    outcome = numbers(sample, "outcome")
    known = np.isin(outcome, [OUTCOMES.index("right"), OUTCOMES.index("wrong")])
    rows = where(sample, known & ~np.isnan(numbers(sample, "label_probability")))
    explained = numbers(rows, "predicted_class") == numbers(rows, "target_class")
    ids = np.array(rows["image_id"].to_pylist(), np.str_)
    order = np.lexsort((~explained, ids))
    first = np.ones(len(ids), np.bool_)
    first[1:] = ids[order][1:] != ids[order][:-1]
    return rows.take(pa.array(np.sort(order[first])))


def _suspects(rows: pa.Table, settings: Settings) -> Mask:
    """Return who is wrong, confident, little inclined to the label, and focused."""
    wrong = numbers(rows, "outcome") == OUTCOMES.index("wrong")
    sure = numbers(rows, "predicted_probability") >= settings.confident
    little = numbers(rows, "label_probability") <= 1 - settings.confident
    return np.asarray(wrong & sure & little & _focused(rows))


def _focused(rows: pa.Table) -> Mask:
    """Return whose map is as focused as half of the right predictions' maps.

    On the object (energy) where it is known, else concentrated (effective area); all are where nothing is right.
    """
    right = numbers(rows, "outcome") == OUTCOMES.index("right")
    energy, area = numbers(rows, "energy"), numbers(rows, "effective_area")
    on_object = energy >= _median(energy[right], -np.inf)
    return np.where(np.isnan(energy), area <= _median(area[right], np.inf), on_object)


def _median(values: Floats, otherwise: float) -> float:
    values = values[~np.isnan(values)]
    return float(np.median(values)) if len(values) else otherwise


def _more_than_others(hits: Floats, n: Floats, least: int) -> Floats:
    """Return p (K,) of at least so many hits, at the rate of the others with one hit more (binomial test)."""
    rate = (hits.sum() - hits + 1) / (n.sum() - n + 1)
    p = at_least_p(hits, n, np.minimum(1.0, rate))
    return np.asarray(np.where((n >= least) & (n.sum() - n >= least), p, np.nan))


def _refs(evidence: Evidence, suspects: pa.Table) -> tuple[ImageRef, ...]:
    names = ["image_id", "unit_id", "target_class", "store_path", "store_row"]
    return tuple(
        ImageRef(
            **{name: row[name] for name in names},
            note=(
                f"labelled '{evidence.frame.name(row['label'])}' ({row['label_probability']:.1%}), predicted "
                f"'{evidence.frame.name(row['predicted_class'])}' ({row['predicted_probability']:.1%})"
            ),
        )
        for row in suspects.slice(0, _MOST).to_pylist()
    )


KIND = LabelSuspect()

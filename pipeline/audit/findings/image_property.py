"""Classes and groups that can be told by the file's form alone: its size, its aspect, its bytes per pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.audit.cells import EVERYTHING
from pipeline.audit.contrast import MOST_D, Contrast, Family, Groups, Sums, by_group, strength_of_d
from pipeline.audit.findings.base import Evidence, FindingKind, image_refs, severity
from pipeline.audit.findings.samples import of_class, plural, texts, where
from pipeline.audit.intervals import two_sided, welch
from schemas.audit import PROPERTIES, Finding

Floats = npt.NDArray[np.float64]

#: Least standardised difference; forms differ a little everywhere (a large effect in Cohen 1988).
_LARGE = 0.8
_CLASS_WEIGHT = 0.5
_GROUP_WEIGHT = 0.3
_SHOWN = 12

#: Property -> (name, more of it, less of it).
_WORDS = {
    "log_width": ("width", "wider", "narrower"),
    "log_height": ("height", "taller", "less tall"),
    "log_aspect": ("width over height", "broader in shape", "slimmer in shape"),
    "log_bytes_per_pixel": ("bytes per pixel", "larger for their size", "smaller for their size"),
}
_NAMES = tuple(_WORDS)
_COLUMNS = [[each.name for each in PROPERTIES].index(name) for name in _NAMES]
_REMEDY = (
    "Find out whether these images come from another source. Bring all to one size and one compression before "
    "training, and test the model on images of this class from elsewhere."
)


class ImageProperty(FindingKind):
    """Each label against the other labels; each group against the others, within labels."""

    name = "image_property"

    def find(self, evidence: Evidence) -> list[Finding]:
        """Return at most one finding per label, and one per attribute (its most different value)."""
        settings = evidence.frame.settings
        groups = by_group(evidence.state.images, 0)
        labels = [label for attribute, label in groups if attribute == EVERYTHING]
        if not labels:
            return []
        least = max(settings.flagged_from, settings.interval_from)
        sums = Sums.of([groups[EVERYTHING, label][""] for label in labels], _COLUMNS)
        contrast = Contrast(sums, sums.others())
        families = {name: _Values(groups, name) for name in settings.groups}
        p = [_labels_p(contrast, least), *(each.p(least) for each in families.values())]
        family = Family(np.concatenate([each.ravel() for each in p]), settings.q)
        floor = max(_LARGE, settings.effect_d)
        found = _of_labels(self.name, evidence, labels, sums, family, floor)
        for (name, values), one in zip(families.items(), p[1:], strict=True):
            found += _of_values(self.name, evidence, name, values, one, family, floor)
        return found


def _labels_p(contrast: Contrast, least: int) -> Floats:
    """Return Welch's p (K, properties); NaN where either side has fewer than ``least`` images."""
    own, other = contrast.own, contrast.other
    _, _, p = welch(own.mean, own.variance, own.count, other.mean, other.variance, other.count)
    return np.where(np.minimum(own.count, other.count) >= least, p, np.nan)


def _of_labels(
    kind: str, evidence: Evidence, labels: list[int], sums: Sums, family: Family, floor: float
) -> list[Finding]:
    """Return the labels that differ, the strongest first, each against those that are not yet found.

    One odd label makes every other label differ from the mean; of two, which mirror each other, the rarer one is told.
    """
    settings = evidence.frame.settings
    least = max(settings.flagged_from, settings.interval_from)

    def flagged(contrast: Contrast) -> npt.NDArray[np.bool_]:
        return np.asarray((_labels_p(contrast, least) <= family.threshold) & (np.abs(contrast.d) >= floor))

    contrast = Contrast(sums, sums.others())
    strength = np.where(flagged(contrast), np.abs(contrast.d), 0).max(1).round(6)
    order = np.lexsort((contrast.n[:, 0], -strength))[: int((strength > 0).sum())]
    rest, found = sums.together(), []
    for row in order.tolist():
        own = sums.take([row])
        again = Contrast(own, rest.minus(own))
        kept = np.flatnonzero(flagged(again)[0]).tolist()
        if kept:
            kept.sort(key=lambda each: -abs(again.d[0, each]))
            found.append(_label_finding(kind, evidence, labels[row], again, kept, _labels_p(again, least)[0], family))
            rest = rest.minus(own)
    return found


def _label_finding(
    kind: str, evidence: Evidence, label: int, contrast: Contrast, kept: list[int], p: Floats, family: Family
) -> Finding:
    lead = kept[0]
    name, d = evidence.frame.name(label), float(contrast.d[0, lead])
    what, more = _NAMES[lead], _WORDS[_NAMES[lead]][1 if d > 0 else 2]
    factor, n, other_n = (each[0, lead].item() for each in (np.exp(contrast.difference), contrast.n, contrast.other_n))
    low, high = _d_interval(d, n, other_n)
    return Finding(
        finding_id=f"{kind}:{label}",
        kind=kind,
        title=f"Label '{name}': its images are {more}",
        sentence=(
            f"Images labelled '{name}' are {more} than those of the other labels ({_WORDS[what][0]} {factor:.2f} times "
            f"as large; {abs(d):.1f} standard deviations, 95% interval {_span(low, high)}; {plural(n, 'image')}): the "
            "label may be readable from the file's form alone."
        ),
        remedy=_REMEDY,
        severity=severity(strength_of_d(d), _CLASS_WEIGHT),
        target_class=label,
        target_name=name,
        measure=what,
        effect=d,
        effect_name="d",
        low=low,
        high=high,
        p=float(p[lead]),
        q=family.q(float(p[lead])),
        n=n,
        reference_n=other_n,
        images=image_refs(of_class(evidence.sample, label, "label"), f"labelled '{name}'", _SHOWN),
        details={
            "times": factor,
            "properties": {
                _NAMES[each]: {"d": float(contrast.d[0, each]), "q": family.q(float(p[each]))} for each in kept
            },
        },
    )


class _Values:
    """The values of an attribute, each against the others of the same label; labels are averaged.

    A label counts with the weight n1 n2 / (n1 + n2) of its images of the value and of the others, so that groups with
    other mixes of labels are not taken for different.
    """

    def __init__(self, groups: Groups, attribute: str) -> None:
        of_labels = [values for (name, _), values in groups.items() if name == attribute]
        self.names = sorted({value for values in of_labels for value in values})
        place = {value: row for row, value in enumerate(self.names)}
        shape = (len(self.names), len(_NAMES))
        self.n, self.other_n, weights, weighted, squares, self._error2, freedom = (np.zeros(shape) for _ in range(7))
        for values in of_labels:
            if len(values) < 2:
                continue
            sums = Sums.of(list(values.values()), _COLUMNS)
            contrast = Contrast(sums, sums.others())
            rows = [place[value] for value in values]
            n, other_n = contrast.n.astype(np.float64), contrast.other_n.astype(np.float64)
            both = (n >= 2) & (other_n >= 2)
            weight = np.where(both, n * other_n / np.maximum(n + other_n, 1), 0)
            own_variance, variance = np.nan_to_num(sums.variance), np.nan_to_num(contrast.other.variance)
            weights[rows] += weight
            weighted[rows] += weight * np.nan_to_num(contrast.difference)
            squares[rows] += np.where(both, (n - 1) * own_variance + (other_n - 1) * variance, 0)
            freedom[rows] += np.where(both, n + other_n - 2, 0)
            self._error2[rows] += weight**2 * (own_variance / np.maximum(n, 1) + variance / np.maximum(other_n, 1))
            self.n[rows] += np.where(both, n, 0)
            self.other_n[rows] += np.where(both, other_n, 0)
        total = np.where(weights > 0, weights, np.nan)
        self.difference, self._error2 = weighted / total, self._error2 / total**2
        with np.errstate(divide="ignore", invalid="ignore"):
            d = self.difference / np.sqrt(squares / np.where(freedom > 0, freedom, np.nan))
            self.t = self.difference / np.sqrt(self._error2)
        self.d = np.clip(d, -MOST_D, MOST_D)

    def p(self, least: int) -> Floats:
        """Return two-sided p (values, properties); of two values, which mirror each other, the smaller is tested."""
        smaller = np.minimum(self.n, self.other_n)
        p = np.where(smaller >= least, two_sided(self.t, smaller - 1), np.nan)
        if len(p) == 2:
            p[int(np.argmax(self.n[:, 0]))] = np.nan
        return np.asarray(p)


def _of_values(
    kind: str, evidence: Evidence, attribute: str, values: _Values, p: Floats, family: Family, floor: float
) -> list[Finding]:
    flagged = (p <= family.threshold) & (np.abs(values.d) >= floor)
    if not flagged.any():
        return []
    strength = np.where(flagged, np.abs(values.d), 0)
    row, lead = divmod(int(np.argmax(strength)), len(_NAMES))
    d, n, other_n = float(values.d[row, lead]), int(values.n[row, lead]), int(values.other_n[row, lead])
    factor, value, what = float(np.exp(values.difference[row, lead])), values.names[row], _NAMES[lead]
    more = _WORDS[what][1 if d > 0 else 2]
    low, high = _d_interval(d, n, other_n)
    also: dict[str, Any] = {
        values.names[each]: {_NAMES[other]: float(values.d[each, other]) for other in np.flatnonzero(flagged[each])}
        for each in np.flatnonzero(flagged.any(1)).tolist()
    }
    rows = where(evidence.sample, texts(evidence.sample, f"group:{attribute}") == value)
    return [
        Finding(
            finding_id=f"{kind}:{attribute}:{value}",
            kind=kind,
            title=f"{attribute} '{value}': its images are {more}",
            sentence=(
                f"Images where {attribute} is '{value}' are {more} than others of the same labels ({_WORDS[what][0]} "
                f"{factor:.2f} times as large; {abs(d):.1f} standard deviations, 95% interval {_span(low, high)}; "
                f"{plural(n, 'image')}): where {attribute} goes with the label, the file's form gives it away."
            ),
            remedy=(
                f"Bring the images to one size and one compression, and look whether each label has images of every "
                f"{attribute}."
            ),
            severity=severity(strength_of_d(d), _GROUP_WEIGHT),
            attribute=attribute,
            value=value,
            measure=what,
            effect=d,
            effect_name="d",
            low=low,
            high=high,
            p=float(p[row, lead]),
            q=family.q(float(p[row, lead])),
            n=n,
            reference_n=other_n,
            images=image_refs(rows, f"{attribute} '{value}'", _SHOWN),
            details={"times": factor, "values": also},
        )
    ]


def _d_interval(d: float, n: int, other_n: int) -> tuple[float, float]:
    """Return the 95% interval of Cohen's d by its large-sample error (Hedges and Olkin 1985, chapter 5, eq. 14)."""
    error = float(np.sqrt(1 / n + 1 / other_n + d**2 / (2 * (n + other_n))))
    return d - 1.959964 * error, d + 1.959964 * error


def _span(low: float, high: float) -> str:
    near, far = sorted((abs(low), abs(high)))
    return f"{near:.1f} to {far:.1f}"


KIND = ImageProperty()

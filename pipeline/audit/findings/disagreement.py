"""Methods that explain the same images differently: at least one of them does not show what the model uses."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.audit.cells import Cell
from pipeline.audit.contrast import Contrast, Sums, strength_of_d
from pipeline.audit.findings.base import Evidence, FindingKind, image_refs, severity
from pipeline.audit.findings.samples import of_class, plural
from pipeline.audit.frame import Frame
from pipeline.audit.intervals import benjamini_hochberg, two_sided, welch
from schemas.audit import Finding

Floats = npt.NDArray[np.float64]

#: Mean correlation below which two methods disagree as a whole.
_LOW = 0.5
#: Least standardised difference, and difference of the correlation, of a class.
_CLASS_D = 0.5
_CLASS_DIFFERENCE = 0.1
#: Pairs that are told, the worst ones.
_PAIRS = 10
_WEIGHT = 0.4
_SHOWN = 12


class Disagreement(FindingKind):
    """Correlation of the maps of each pair of methods: as a whole, and of each class against the others."""

    name = "disagreement"

    def find(self, evidence: Evidence) -> list[Finding]:
        """Return a finding for each pair that disagrees, and one per class in which a pair does so much more.

        Correlations within a class are compared by Welch's test, and with ``_LOW`` by Student's, one family together.
        """
        settings = evidence.frame.settings
        least = max(settings.flagged_from, settings.interval_from)
        pairs = [_Pair(number, cells, least) for number, cells in sorted(_by_pair(evidence).items())]
        if not pairs:
            return []
        q = benjamini_hochberg(np.concatenate([each.p for each in pairs]))
        for pair, part in zip(pairs, np.split(q, np.cumsum([len(each.p) for each in pairs])[:-1]), strict=True):
            pair.q = part
        low = [pair for pair in pairs if pair.mean < _LOW and pair.q[-1] < settings.q]
        low = sorted(low, key=lambda pair: pair.mean)[:_PAIRS]
        found = [_of_pair(self.name, evidence, pair) for pair in low]
        worst: dict[int, tuple[_Pair, int]] = {}
        for pair in pairs:
            for row in pair.flagged(settings.q, settings.effect_d):
                target = pair.classes[row]
                if target not in worst or pair.d[row] < worst[target][0].d[worst[target][1]]:
                    worst[target] = pair, row
        return found + [_of_class(self.name, evidence, *worst[target]) for target in sorted(worst)]


class _Pair:
    """Two series' agreement: ``d``, ``p``, ``q`` of each class; the last of ``p`` and ``q`` are of all together."""

    def __init__(self, number: int, cells: dict[int, list[Cell]], least: int) -> None:
        self.number, self.classes = number, list(cells)
        sums = Sums.of(list(cells.values()), [0])
        self.contrast = Contrast(sums, sums.others())
        self.d = self.contrast.d[:, 0]
        own, other = sums, self.contrast.other
        _, _, p = welch(own.mean, own.variance, own.count, other.mean, other.variance, other.count)
        p = np.where(np.minimum(own.count, other.count) >= least, p, np.nan)[:, 0]
        whole = sums.together()
        self.n = int(whole.count[0, 0])
        self.mean = float(whole.mean[0, 0])
        self.error = float(np.sqrt(whole.variance[0, 0] / self.n)) if self.n else float("nan")
        t = (self.mean - _LOW) / self.error if self.error > 0 else np.copysign(np.inf, self.mean - _LOW)
        self.p = np.append(p, two_sided(t, self.n - 1) if self.n >= least else np.nan)
        self.q = self.p

    def flagged(self, q: float, effect_d: float) -> list[int]:
        """Return the classes' rows in which the two disagree much more than elsewhere."""
        more = (self.d <= -max(_CLASS_D, effect_d)) & (self.contrast.difference[:, 0] <= -_CLASS_DIFFERENCE)
        return np.flatnonzero(more & (self.q[:-1] < q)).tolist()


def _by_pair(evidence: Evidence) -> dict[int, dict[int, list[Cell]]]:
    cells = evidence.state.agreement.cells
    found: dict[int, dict[int, list[Cell]]] = {}
    for key in sorted(cells):
        found.setdefault(key.series, {}).setdefault(key.target_class, []).append(cells[key])
    return found


def _names(frame: Frame, pair: int) -> str:
    places = divmod(pair, len(frame.series))
    methods = [each.method for each in frame.series]
    return " and ".join(
        f"{frame.series[place].method} ({frame.series[place].layer})"
        if methods.count(methods[place]) > 1
        else methods[place]
        for place in places
    )


def _of_pair(kind: str, evidence: Evidence, pair: _Pair) -> Finding:
    frame, half = evidence.frame, 1.959964 * pair.error
    names = _names(frame, pair.number)
    low, high = max(-1.0, pair.mean - half), min(1.0, pair.mean + half)
    order = np.argsort(np.nan_to_num(pair.contrast.mean[:, 0], nan=1.0), kind="stable")[:5].tolist()
    return Finding(
        finding_id=f"{kind}:{names}",
        kind=kind,
        title=f"{names} disagree",
        sentence=(
            f"The maps of {names} hardly agree on the same images and classes: their mean correlation is "
            f"{pair.mean:.2f} (95% interval {low:.2f} to {high:.2f}, {plural(pair.n, 'map')}), so what one "
            "shows need not be what the model uses."
        ),
        remedy="Trust the method that is more faithful (deletion, insertion, average drop), and audit with that one.",
        severity=severity((_LOW - pair.mean) / _LOW, _WEIGHT),
        measure="correlation",
        effect=pair.mean,
        effect_name="correlation",
        low=low,
        high=high,
        p=float(pair.p[-1]),
        q=float(pair.q[-1]),
        n=pair.n,
        details={"lowest": {frame.name(pair.classes[row]): float(pair.contrast.mean[row, 0]) for row in order}},
    )


def _of_class(kind: str, evidence: Evidence, pair: _Pair, row: int) -> Finding:
    frame, target, contrast = evidence.frame, pair.classes[row], pair.contrast
    name, names, d = frame.name(target), _names(frame, pair.number), float(pair.d[row])
    own, other, n = float(contrast.mean[row, 0]), float(contrast.other_mean[row, 0]), int(contrast.n[row, 0])
    error = np.sqrt(contrast.own.variance[row, 0] / n + contrast.other.variance[row, 0] / contrast.other_n[row, 0])
    low, high = (own - other + sign * 1.959964 * float(error) for sign in (-1, 1))
    return Finding(
        finding_id=f"{kind}:{target}",
        kind=kind,
        title=f"'{name}': {names} disagree",
        sentence=(
            f"For '{name}', the maps of {names} agree less than elsewhere: their mean correlation is {own:.2f} against "
            f"{other:.2f} for the other classes (95% interval of the difference {low:+.2f} to {high:+.2f}, "
            f"{plural(n, 'map')})."
        ),
        remedy="Look at both methods' maps of this class before you draw conclusions from either.",
        severity=severity(strength_of_d(d), _WEIGHT),
        target_class=target,
        target_name=name,
        measure="correlation",
        effect=own - other,
        effect_name="difference",
        low=low,
        high=high,
        p=float(pair.p[row]),
        q=float(pair.q[row]),
        n=n,
        reference_n=int(contrast.other_n[row, 0]),
        images=image_refs(of_class(evidence.sample, target), "", _SHOWN),
        details={"d": d, "own": own, "other": other, "pair": names},
    )


KIND = Disagreement()

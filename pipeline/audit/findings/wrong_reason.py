"""Right for the wrong reason: predictions that are right and confident, while the map lies off the object.

A map lies off the object where it has less of its weight there than a uniform map would (enrichment below 1) and its
peak is elsewhere too. Both together are rare by chance, whatever the size of the object.
"""

from __future__ import annotations

import importlib
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.audit.findings.base import Evidence, FindingKind, image_refs, severity
from pipeline.audit.intervals import benjamini_hochberg, wilson
from schemas.audit import OUTCOMES, Finding
from schemas.errors import InputError

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_RIGHT = OUTCOMES.index("right")
_NOTE = "right and sure, but not by the object"


class _Rate(NamedTuple):
    """Of ``n`` right and confident maps of a class in the sample, ``hits`` lie off the object."""

    target_class: int
    hits: int
    n: int


class WrongReason(FindingKind):
    """Classes that the model often gets right by something else than the object.

    The sample holds probability and energy together, so rates are the sample's: of each class it is uniform. A class is
    tested from ``interval_from`` such maps in the sample, where the lake has ``flagged_from`` of the class.
    """

    name = "wrong_reason"

    def find(self, evidence: Evidence) -> list[Finding]:
        """See :meth:`FindingKind.find`; nothing where no object's place is known.

        Raises:
            InputError: scipy is missing.
        """
        settings = evidence.frame.settings
        sure = _sure(evidence)
        off = _numpy(sure, "enrichment") < 1
        off &= _numpy(sure, "pointing") == 0
        classes, codes = np.unique(sure["target_class"].to_numpy(), return_inverse=True)
        n, hits = np.bincount(codes, minlength=len(classes)), np.bincount(codes[off], minlength=len(classes))
        rates = [_Rate(*row) for row in zip(classes.tolist(), hits.tolist(), n.tolist(), strict=True)]
        tested = [rate for rate in rates if self._is_tested(evidence, rate)]
        p = [_tail(rate.hits, rate.n, settings.effect_energy) for rate in tested]
        others = _Rate(-1, sum(rate.hits for rate in rates), sum(rate.n for rate in rates))
        found = []
        flagged: set[int] = set()
        for rate, chance, q in zip(tested, p, benjamini_hochberg(p).tolist(), strict=True):
            rest = others._replace(hits=others.hits - rate.hits, n=others.n - rate.n)
            usual = rest.hits / rest.n if rest.n else 0.0
            if q < settings.q and rate.hits / rate.n >= settings.effect_ratio * usual:
                flagged.add(rate.target_class)
                found.append(self._finding(evidence, rate, rest, chance, q, _of_class(sure, off, rate.target_class)))
        left = [rate for rate in rates if rate.target_class not in flagged]
        return found + self._everywhere(evidence, left, sure, off)

    def _is_tested(self, evidence: Evidence, rate: _Rate) -> bool:
        settings, cell = evidence.frame.settings, evidence.cell(rate.target_class)
        return rate.n >= settings.interval_from and cell is not None and cell.rows >= settings.flagged_from

    def _finding(self, evidence: Evidence, rate: _Rate, rest: _Rate, p: float, q: float, rows: pa.Table) -> Finding:
        name = evidence.frame.name(rate.target_class)
        low, high = wilson(rate.hits, rate.n)
        share = rate.hits / rate.n
        return Finding(
            finding_id=f"{self.name}:{rate.target_class}",
            kind=self.name,
            title=f"Right for the wrong reason: {name}",
            sentence=(
                f"In {share:.0%} of the images that the model rightly and surely calls '{name}', its attention lies "
                "off the object: it is right by something else in the picture, and may fail where that is missing."
            ),
            remedy=(
                f"Look at what the maps show instead, and test the model on pictures of '{name}' without it; add such "
                "pictures to the training data."
            ),
            severity=severity(share, 0.7),
            target_class=rate.target_class,
            target_name=name,
            measure="enrichment",
            effect=share,
            effect_name="share",
            low=float(low),
            high=float(high),
            p=p,
            q=q,
            n=rate.n,
            reference_n=rest.n,
            images=image_refs(rows, _NOTE),
            details={"off_object": rate.hits, "other_classes": rest.hits / rest.n if rest.n else None},
        )

    def _everywhere(self, evidence: Evidence, rates: list[_Rate], sure: pa.Table, off: Bools) -> list[Finding]:
        """Return a finding about all classes together that are not flagged themselves."""
        settings = evidence.frame.settings
        hits, n = sum(rate.hits for rate in rates), sum(rate.n for rate in rates)
        if n < settings.flagged_from or len(rates) < 2:
            return []
        p = _tail(hits, n, settings.effect_energy)
        if not p < settings.q:
            return []
        low, high = wilson(hits, n)
        kept = np.isin(sure["target_class"].to_numpy(), [rate.target_class for rate in rates])
        return [
            Finding(
                finding_id=f"{self.name}:all",
                kind=self.name,
                title="Right for the wrong reason, over all classes",
                sentence=(
                    f"In {hits / n:.0%} of the images that the model gets right and is sure of, its attention lies off "
                    "the object."
                ),
                remedy=(
                    "Check first that boxes or masks fit the images; then compare with another layer or method, and "
                    "look at what the maps show instead."
                ),
                severity=severity(hits / n, 0.7),
                measure="enrichment",
                effect=hits / n,
                effect_name="share",
                low=float(low),
                high=float(high),
                p=p,
                q=p,
                n=n,
                images=image_refs(_worst(sure.filter(pa.array(off & kept))), _NOTE),
                details={"off_object": hits},
            )
        ]


def _sure(evidence: Evidence) -> pa.Table:
    """Return the sample's maps of right and confident predictions whose object is known."""
    sample = evidence.sample
    explained = pc.equal(sample["predicted_class"].cast(pa.int64()), sample["target_class"])
    chosen = pc.and_(
        pc.and_(pc.equal(sample["outcome"], _RIGHT), pc.fill_null(explained, False)),
        pc.greater_equal(sample["probability"], evidence.frame.settings.confident),
    )
    # NaN is no answer to either question.
    known = pc.and_(pc.is_finite(sample["enrichment"]), pc.is_finite(sample["pointing"]))
    return sample.filter(pc.fill_null(pc.and_(chosen, known), False))


def _of_class(sure: pa.Table, off: Bools, target_class: int) -> pa.Table:
    return _worst(sure.filter(pa.array(off & (sure["target_class"].to_numpy() == target_class))))


def _worst(rows: pa.Table) -> pa.Table:
    """Return rows, the least enrichment first."""
    return rows.take(pc.sort_indices(rows, [("enrichment", "ascending"), ("image_id", "ascending")]))


def _tail(hits: int, n: int, rate: float) -> float:
    """Return the chance of so many hits of n or more, where the rate is ``rate``: an exact binomial test."""
    try:
        special = importlib.import_module("scipy.special")
    except ImportError as error:
        raise InputError("the audit's tests need scipy; install it: pip install 'camlake[audit]'") from error
    return float(special.bdtrc(hits - 1, n, rate)) if hits else 1.0


def _numpy(rows: pa.Table, name: str) -> Floats:
    return np.asarray(rows[name].to_numpy(), np.float64)


KIND = WrongReason

"""Does the model use what a finding is about? Its area is painted over, and the class's probability is looked at again.

A map can put weight on what the model does not use. So of the images behind a finding the area is painted over
(:func:`pipeline.audit.pictures.painted_over`), and, for comparison, areas of the same form elsewhere that hold no more
of the map's evidence, drawn at random. What counts is the paired difference of the two changes. A third change, with
the area elsewhere whose evidence is nearest to the finding's, is told in the details only: where a map is exact (CAM
behind global average pooling), equal evidence moves the logit equally, so that a cue that is used would never differ
from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from pipeline.audit.extras import extra
from pipeline.audit.findings.base import Evidence
from pipeline.audit.keys import keys_of
from pipeline.audit.model import LakeModel, load_model
from pipeline.audit.parts import sample_maps
from pipeline.audit.pictures import painted_over, pixels_of
from pipeline.audit.places import WINDOW, Bools, grown, spots, window_shares
from pipeline.audit.report.words import moved
from schemas.audit import GRID, CausalCheck, Finding, ImageRef
from schemas.errors import CamlakeError

Floats = npt.NDArray[np.float64]
Maps = npt.NDArray[np.float32]

#: Findings that are checked, the worst first.
MOST_FINDINGS = 20
_DRAWS = 3
_FEWEST = 5
#: Cells around the strongest spot that belong to it if they hold a quarter of it.
_REACH = 3
_OF_PEAK = 0.25
#: Mean probabilities beyond which changes are of log-odds, since the probability itself hardly moves any more.
_SATURATED = (0.02, 0.98)
#: Least mean change, and least mean difference to the control, that say that an area is used (a twentieth of
#: probability, as for shares elsewhere in the audit, and what that is in log-odds at one half), and the lower end that
#: says that it is not; by scale.
_LEAST = {"probability": 0.05, "log-odds": 0.2}
_NOTHING = {"probability": 0.1, "log-odds": 1.0}
_USED, _UNUSED = 1.25, 0.3


@dataclass(frozen=True)
class Odds:
    """Log-odds of N images: as they are, with the area painted over, with others, with one of equal evidence."""

    before: Floats
    after: Floats
    control: Floats
    equal: Floats


def check_findings(
    evidence: Evidence, findings: Sequence[Finding], *, images: int, say: Callable[[str], None]
) -> list[Finding]:
    """Return the findings, those of a place checked with the model: ``causal``, severity and sentence are set.

    A finding is checked if it has images and a place: ``details["zone"]`` (GRID x GRID of 0 and 1), or a measure of
    border or corners. The severity of what the model uses is raised by a quarter, and of what it does not use lowered
    to 0.3 of it; where the interval cannot tell, it stays.

    Args:
        evidence: of the audit.
        findings: in any order; the result has the same.
        images: most images per finding.
        say: gets a line where model or pictures cannot be had (then the findings stay as they are).
    """
    result = list(findings)
    zones = {number: zone for number, each in enumerate(result) if (zone := zone_of(each)) is not None and each.images}
    wanted = sorted(zones, key=lambda number: -result[number].severity)[:MOST_FINDINGS]
    if not wanted:
        return result
    try:
        model = load_model(evidence.lake)
    except CamlakeError as error:
        say(f"causal check left out: the model cannot be had ({error})")
        return result
    evidence.originals.hold(
        (each.image_id, each.unit_id) for number in wanted for each in result[number].images[:images]
    )
    trouble: CamlakeError | None = None
    for number in wanted:
        odds, wrong = measure(evidence, model, result[number].images[:images], _strongest_in(zones[number]))
        trouble = trouble or wrong
        if odds is not None:
            result[number] = judged(result[number], odds.before, odds.after, odds.control, odds.equal)
    missing = sum(result[number].causal is None for number in wanted)
    if missing:
        why = f" ({trouble})" if trouble else ""
        say(f"causal check left out for {missing} of {len(wanted)} findings: too few of their pictures can be had{why}")
    return result


def _strongest_in(zone: Bools) -> Callable[[ImageRef, Maps], Bools]:
    return lambda reference, density: area_of(density, zone)


def zone_of(finding: Finding) -> Bools | None:
    """Return the cells (GRID, GRID) that a finding is about; None where it is about no place."""
    zone = finding.details.get("zone")
    if zone is not None:
        return np.asarray(zone, np.bool_)
    if finding.measure not in ("border_enrichment", "corner_enrichment"):
        return None
    ends = np.zeros(GRID, np.bool_)
    # A fifth of the side at corners, a tenth at edges, in whole cells.
    width = 3 if finding.measure == "corner_enrichment" else 2
    ends[:width] = ends[-width:] = True
    if finding.measure == "corner_enrichment":
        return ends[:, None] & ends[None, :]
    return ends[:, None] | ends[None, :]


def measure(
    evidence: Evidence, model: LakeModel, references: Sequence[ImageRef], area: Callable[[ImageRef, Maps], Bools]
) -> tuple[Odds | None, CamlakeError | None]:
    """Paint over an area of each image, and other areas of the same form, and ask the model.

    Args:
        evidence: of the audit; its sample has the maps.
        model: of the lake.
        references: images, each with the class that is asked about.
        area: gives the cells (GRID, GRID) of an image and its map (GRID, GRID).

    Returns:
        The odds, or None where too few pictures can be had, and what was in the way.
    """
    maps = _maps(evidence.sample, references)
    trouble: CamlakeError | None = None
    found: list[Floats] = []
    for reference in references:
        density = maps.get((reference.image_id, reference.target_class))
        if density is None or reference.target_class is None:
            continue
        rng = np.random.default_rng(int(keys_of([reference.image_id], evidence.frame.settings.seed)[0]))
        painted = area(reference, density)
        others = controls(density, painted, rng)
        if not others:
            continue
        try:
            row = evidence.lake.image(reference.image_id, reference.unit_id)
            image = model.picture(evidence.originals, row)
        except CamlakeError as error:
            trouble = trouble or error
            continue
        size = (image.shape[1], image.shape[2])
        changed = [painted_over(image, pixels_of(cells, size), rng) for cells in (painted, *others)]
        odds = model.odds(torch.stack([image, *changed]), reference.target_class)
        if np.isfinite(odds).all():
            found.append(odds)
    if len(found) < _FEWEST:
        return None, trouble
    table = np.stack(found)
    return Odds(table[:, 0], table[:, 1], table[:, 2:-1], table[:, -1]), trouble


def _maps(sample: pa.Table, references: Sequence[ImageRef]) -> dict[tuple[str, int | None], Maps]:
    wanted = pa.array([reference.image_id for reference in references], pa.string())
    rows = sample.filter(pc.is_in(sample["image_id"], wanted))
    keys = zip(rows["image_id"].to_pylist(), rows["target_class"].to_pylist(), strict=True)
    return dict(zip(keys, sample_maps(rows), strict=True))


def area_of(density: Maps, zone: Bools) -> Bools:
    """Return the cells (GRID, GRID) of the strongest spot of a map within a zone, with a cell around it.

    A spot is what makes an image look at a place (:func:`pipeline.audit.places.spots`): not the flank of an object that
    reaches into the zone, which is taken only where the zone has no spot of its own. From the spot the area goes
    downhill alone, so that it ends where an object beside it begins.
    """
    shares, own = window_shares(density[None])[0], spots(density[None])[0]
    inner = slice(WINDOW // 2, WINDOW // 2 + shares.shape[0])
    inside = zone[inner, inner]
    if not inside.any():  # a strip along the very edge: the windows that touch it
        inside = grown(zone)[inner, inner]
    strength = own if own[inside].max() > 0 else shares
    y, x = np.unravel_index(int(np.where(inside, strength, -1).argmax()), shares.shape)
    area = np.zeros((GRID, GRID), np.bool_)
    area[y : y + WINDOW, x : x + WINDOW] = True
    reach = np.zeros_like(area)
    top, left = max(0, int(y) + 1 - _REACH), max(0, int(x) + 1 - _REACH)
    reach[top : int(y) + 2 + _REACH, left : int(x) + 2 + _REACH] = True
    strong = reach & (density >= _OF_PEAK * density[area].max())
    for _ in range(2 * _REACH):
        area |= strong & (density <= _highest_beside(density, area))
    return grown(area) & grown(reach)


def _highest_beside(density: Maps, area: Bools) -> Floats:
    """Return, for each cell, the most that a cell of the area has among it and its eight neighbours."""
    padded = np.pad(np.where(area, density, -np.inf), 1, constant_values=-np.inf)
    return np.asarray(np.lib.stride_tricks.sliding_window_view(padded, (3, 3)).max((2, 3)), np.float64)


def controls(density: Maps, area: Bools, rng: np.random.Generator) -> list[Bools]:
    """Return ``_DRAWS`` areas of the same form elsewhere with no more evidence, at random, and that of the nearest.

    Where all others hold more, they are drawn among all. Empty where the area leaves no room.
    """
    rows, columns = np.nonzero(area)
    rows, columns = rows - rows.min(), columns - columns.min()
    downs, acrosses = np.arange(GRID - rows.max()), np.arange(GRID - columns.max())
    y = downs[:, None, None] + rows
    x = acrosses[None, :, None] + columns
    free = ~area[y, x].any(-1)
    energy = density[y, x].sum(-1).astype(np.float64)
    places = np.argwhere(free)
    if not len(places):
        return []
    held, own = energy[free], float(density[area].sum())
    light = np.flatnonzero(held <= own)
    pool = light if len(light) else np.arange(len(places))
    drawn = [*rng.choice(pool, _DRAWS, replace=len(pool) < _DRAWS).tolist(), int(np.abs(held - own).argmin())]
    found = []
    for number in drawn:
        down, across = places[number]
        cells = np.zeros((GRID, GRID), np.bool_)
        cells[rows + down, columns + across] = True
        found.append(cells)
    return found


def judged(finding: Finding, before: Floats, after: Floats, control: Floats, equal: Floats) -> Finding:
    """Return a finding with what the check says of it.

    The interval is Student's, of the paired differences over the images. Used: it lies below zero, and the probability
    falls by 0.05 at least on average, both against the control and by itself (0.2 of log-odds, where the mean
    probability is below 0.02 or above 0.98). By itself, since painting over areas without evidence for a class may take
    away evidence against it: where the control rises, an area that does nothing differs from it. Not used: it is not,
    and the interval lies above -0.1 (-1).

    Args:
        finding: that was checked.
        before: (N,) log-odds of the class in the images as they are.
        after: (N,) with the area painted over.
        control: (N, draws) with others.
        equal: (N,) with another of about equal evidence.
    """
    scale = "probability"
    values = [_probability(each) for each in (before, after, control, equal)]
    if not _SATURATED[0] <= float(values[0].mean()) <= _SATURATED[1]:
        scale, values = "log-odds", [before, after, control, equal]
    was, now, others, same = values
    change, elsewhere = now - was, others.mean(1) - was
    difference = change - elsewhere
    n, mean = len(difference), float(difference.mean())
    half = float(extra("scipy.stats").t.ppf(0.975, n - 1) * difference.std(ddof=1) / np.sqrt(n))
    used = mean + half < 0 and max(mean, float(change.mean())) <= -_LEAST[scale]
    check = CausalCheck(
        images=n,
        change=float(change.mean()),
        control=float(elsewhere.mean()),
        low=mean - half,
        high=mean + half,
        used=used,
    )
    unused = not used and mean - half > -_NOTHING[scale]
    if used:
        verdict, severity = "The model uses it", min(100.0, finding.severity * _USED)
    elif unused:
        verdict, severity = "It is present, but the model does not use it", finding.severity * _UNUSED
    else:
        verdict, severity = "Whether the model uses it, these images do not tell", finding.severity
    about = f"the {scale} of '{finding.target_name}'" if finding.target_name else f"the {scale} of the class"
    return finding.model_copy(
        update={
            "causal": check,
            "severity": severity,
            "sentence": (
                f"{finding.sentence} {verdict}: with it painted over in {n} images, {about} {moved(check.change)} on "
                f"average; with other areas of that form painted over instead it {moved(check.control)}."
            ),
            "details": finding.details
            | {
                "statement": finding.sentence,
                "causal_scale": scale,
                "causal_equal_evidence": float((same - was).mean()),
                "causal_unused": unused,
            },
        }
    )


def _probability(odds: Floats) -> Floats:
    return 1 / (1 + np.exp(-np.clip(odds, -700, 700)))


__all__ = ["MOST_FINDINGS", "Odds", "area_of", "check_findings", "controls", "judged", "measure", "zone_of"]

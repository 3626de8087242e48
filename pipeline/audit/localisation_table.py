"""How well the methods of a lake find objects, as a table; measured as :mod:`pipeline.audit.wsol` says."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from typing import NamedTuple, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.audit.components import LEVELS
from pipeline.audit.frame import Frame
from pipeline.audit.keys import keys_of
from pipeline.audit.localisation import Floats
from pipeline.audit.parts_files import FOLDER, Chunk
from pipeline.audit.progress import Progression
from pipeline.audit.regions.base import Mask, RegionSource
from pipeline.audit.unit import counted
from pipeline.audit.wsol import BINS, Found, outlines
from pipeline.lake import Lake, LakeStore
from pipeline.lake.reader import view_of
from schemas.audit import AUDIT_VERSION, LOCALISATION
from schemas.errors import LakeError

#: Stands in place of a method where each map is a Gaussian in the middle of the view.
CENTRE = "centre_gaussian"
#: Images of the sample; each and its maps of one method cost about 4 ms of a core.
IMAGES = 1000


def kept_localisation(
    lake: Lake,
    frame: Frame,
    regions: RegionSource,
    output: LakeStore,
    found: Sequence[Chunk],
    stream: TextIO | None = None,
) -> pa.Table | None:
    """Return :func:`localisation_table`, or None where no object is known; kept in the audit's folder.

    Args:
        lake: the lake.
        frame: the audit's settings, resolved.
        regions: where the objects are.
        output: the audit's folder, where the table is found again.
        found: the audit's chunks, whose names hold all that the table depends on.
        stream: where progress goes (default: stderr).

    Raises:
        InputError, LakeError: as :func:`localisation_table`; the kept table is damaged.
    """
    about = json.dumps([AUDIT_VERSION, LEVELS, BINS, IMAGES, LOCALISATION.names, [chunk.path for chunk in found]])
    path = f"{FOLDER}/localisation-{hashlib.sha256(about.encode()).hexdigest()[:16]}.parquet"
    if output.exists(path):
        try:
            table = pq.read_table(io.BytesIO(output.get(path))).cast(LOCALISATION)
        except (pa.ArrowException, ValueError) as error:
            raise LakeError(f"{output.where(path)} is damaged ({error}); delete it, and run again") from error
    else:
        maps = min(frame.images, IMAGES) * len(frame.series)
        with Progression(maps, 0, stream) as progress:
            table = localisation_table(lake, frame, regions, IMAGES, done=progress.done)
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        output.put_if_absent(path, buffer.getvalue())
    return table if len(table) else None


def localisation_table(
    lake: Lake,
    frame: Frame,
    regions: RegionSource,
    most_images: int = IMAGES,
    *,
    done: Callable[[int], None] = lambda maps: None,
) -> pa.Table:
    """Return how well each method finds the objects, on a sample of images whose objects are known.

    The maps are those that the settings choose: ``targets="label"`` gives what the literature calls GT-known. Images
    are chosen by the hash of their ids, so that the sample is the same for the same lake and seed.

    Args:
        lake: the lake.
        frame: the audit's settings, resolved.
        regions: where the objects are.
        most_images: size of the sample; of smaller lakes, all.
        done: is told how many more maps have been compared.

    Returns:
        :data:`schemas.audit.LOCALISATION`; no row where no object is known.

    Raises:
        InputError: what is said about an image makes no sense.
        LakeError: an object of the lake is missing or damaged.
    """
    found = [Found() for _ in frame.series]
    baseline = Found()
    units = sorted(lake.commits)
    units = [units[place] for place in np.argsort(keys_of(units, frame.settings.seed), kind="stable").tolist()]
    wanted = min(len(units), max(64, most_images // 16))
    each = -(-most_images // max(1, wanted))
    taken = 0
    # Where objects are known of few images only, the search ends some time.
    for unit_id in units[: 4 * wanted]:
        if taken >= most_images:
            break
        images, maps = _add_unit(lake, frame, regions, unit_id, min(each, most_images - taken), found, baseline)
        taken += images
        done(maps)
    names = [(each.method, each.layer) for each in frame.series] + [(CENTRE, "")]
    rows = [
        {"method": method, "layer": layer} | sums.row()
        for (method, layer), sums in zip(names, [*found, baseline], strict=True)
        if sums.maps
    ]
    return pa.Table.from_pylist(rows, schema=LOCALISATION)


def localisation_lines(table: pa.Table) -> list[str]:
    """Return what to tell people: which method finds objects best, and which do not beat the middle of the view."""
    rows = table.to_pylist()
    known = [row for row in rows if row["method"] != CENTRE and row["max_box_acc_v2"] is not None]
    middle = next((row["max_box_acc_v2"] for row in rows if row["method"] == CENTRE), None)
    if not known or middle is None:
        return []
    best = max(known, key=lambda row: row["max_box_acc_v2"])
    lines = [
        f"best by MaxBoxAccV2 over {best['maps']} maps: {best['method']} at {best['layer']}, "
        f"{best['max_box_acc_v2']:.1%} (a Gaussian in the middle: {middle:.1%}); pointing game {_percent(best)}"
    ]
    weak = [f"{row['method']} at {row['layer']}" for row in known if row["max_box_acc_v2"] <= middle]
    if weak:
        lines.append(f"no better than the Gaussian: {', '.join(weak)}")
    return lines


def _percent(row: dict[str, float | None]) -> str:
    value = row["pointing"]
    return "not defined" if value is None else f"{value:.1%}"


class _Known(NamedTuple):
    """Maps of a unit whose regions are known: rows of its maps table, by series alike."""

    rows: list[int]
    masks: list[Mask]
    boxes: list[Floats]
    classes: list[int]


def _add_unit(
    lake: Lake, frame: Frame, regions: RegionSource, unit_id: str, most: int, found: list[Found], baseline: Found
) -> tuple[int, int]:
    """Add up to ``most`` images of a unit; return how many images were added, and how many maps of all series."""
    maps = lake.unit_maps(unit_id)
    maps = maps.filter(counted(maps, frame.settings.targets))
    parts = [
        maps.filter((pc.field("method") == series.method) & (pc.field("layer") == series.layer))
        for series in frame.series
    ]
    known, taken = _known_maps(lake.unit_images(unit_id), parts[frame.primary], frame, regions, most)
    if taken:
        # Methods have the same targets, row by row, which the audit's pass over all units has seen to.
        for part, sums in zip(parts, found, strict=True):
            stored = lake.stored_maps(part.take(pa.array(known.rows)), scaled=True)
            sums.add(stored, known.masks, known.boxes, known.classes)
        baseline.add_prior(known.masks, known.boxes, known.classes)
    return taken, len(known.rows) * len(found)


def _known_maps(images: pa.Table, part: pa.Table, frame: Frame, regions: RegionSource, most: int) -> tuple[_Known, int]:
    """Return the maps of up to ``most`` images whose objects are known, and how many images they are of."""
    rows: dict[str, list[int]] = {}
    for row, image_id in enumerate(part["image_id"].to_pylist()):
        rows.setdefault(image_id, []).append(row)
    ids, targets = images["image_id"].to_pylist(), part["target_class"].to_pylist()
    known, taken = _Known([], [], [], []), 0
    for place in np.argsort(keys_of(ids, frame.settings.seed), kind="stable").tolist():
        if taken == most:
            break
        if ids[place] not in rows:
            continue
        image = images.slice(place, 1).to_pylist()[0]
        view, before = view_of(image), len(known.rows)
        for row in rows[ids[place]]:
            name = None if frame.class_names is None else frame.name(targets[row])
            region = regions.region(image, targets[row], name)
            if region is None or not (mask := region.in_view(view)).any():
                continue
            known.rows.append(row)
            known.masks.append(mask)
            known.boxes.append(outlines(region, view))
            known.classes.append(targets[row])
        taken += len(known.rows) > before
    return known, taken

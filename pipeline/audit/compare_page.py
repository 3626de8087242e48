"""The comparison's page: one HTML file that opens from disk and loads nothing."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from pipeline.audit.compare_tables import ClassDrift, ComparedLake, CompareManifest
from pipeline.audit.compare_words import number, signed, small, verdict
from pipeline.audit.report.pack import clean
from pipeline.audit.report.words import band, counted, measure_label
from pipeline.lake.overlay import colourise
from schemas.audit import GRID, MEASURE_INDEX, MEASURES
from schemas.errors import InputError

#: What the page shows at most, so that it stays a few megabytes whatever the number of classes.
_DRIFTS, _PAIRS, _ROWS, _NAMES, _MOVED = 200, 60, 3000, 120, 6

Floats = npt.NDArray[np.float64]


def compare_page(
    manifest: CompareManifest, table: pa.Table, priors: pa.Table, everywhere: Floats | None = None
) -> bytes:
    """Return the page as UTF-8. Names from the data are text throughout, and nothing in it depends on the time.

    Args:
        manifest: of the comparison.
        table: :data:`~pipeline.audit.compare_tables.COMPARISON`.
        priors: :data:`~pipeline.audit.compare_tables.PRIORS`.
        everywhere: (2, GRID * GRID) mean maps of all compared classes together, in A and B; None: too few.

    Raises:
        InputError: jinja2 is not installed.
    """
    if importlib.util.find_spec("jinja2") is None:
        raise InputError("the comparison's page needs jinja2; install it: pip install 'camlake[audit]'")
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    style = _resource("pipeline.audit.report", "style.css") + _resource("pipeline.audit", "compare_page.css")
    script = _resource("pipeline.audit", "compare_page.js")
    rows = _rows(table)
    pairs = _pairs(priors)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = environment.from_string(_resource("pipeline.audit", "compare_page.html.j2")).render(
        csp=_policy(style, script),
        style=Markup(style),
        script=Markup(script),
        manifest=manifest,
        settings=manifest.settings,
        verdict=verdict(manifest),
        band=band(manifest.drifts[0].severity).key if manifest.drifts else "none" if manifest.tested else "minor",
        whole=None if everywhere is None else _triple(*everywhere.reshape(2, GRID, GRID)),
        moved=_moved(table),
        notes=[clean(note, 600) for note in manifest.notes],
        tiles=_tiles(manifest),
        lakes=[("A", _lake(manifest.a)), ("B", _lake(manifest.b))],
        drifts=[_drift(drift) for drift in manifest.drifts[:_DRIFTS]],
        drifts_left_out=max(0, len(manifest.drifts) - _DRIFTS),
        pairs=pairs,
        priors=len(priors),
        rows=rows,
        rows_left_out=len(table) - len(rows),
        measures=[(measure_label(each.name), each.doc) for each in MEASURES],
        versions=sorted(manifest.versions.items()),
    )
    return text.encode()


def _lake(lake: ComparedLake) -> list[tuple[str, str]]:
    state = "" if lake.finished else " (not finished)"
    return [
        ("Lake", clean(lake.uri, 400)),
        ("Run", clean(lake.run_id, _NAMES) + state),
        ("Model", f"{clean(lake.model, _NAMES)}, weights {lake.model_digest[:12]}"),
        ("Method and layer", clean(f"{lake.method} at {lake.layer}", 2 * _NAMES)),
        (
            "Seen",
            f"{counted(lake.units, 'unit')}, {counted(lake.images, 'image')}, {counted(lake.maps, 'map')}, of which "
            f"{lake.counted:,} count",
        ),
        ("Objects", clean(lake.regions or "their places are not known", 400)),
    ]


def _tiles(manifest: CompareManifest) -> list[tuple[str, str, str]]:
    shared = manifest.shared
    part = f"of {shared.images_a:,} in A and {shared.images_b:,} in B"
    tiles = [
        ("Classes", f"{manifest.classes:,}", f"{manifest.tested:,} with enough maps to test"),
        ("Tests", f"{manifest.tests:,}", f"false discovery rate {manifest.settings.q:g}"),
        ("Images in both", f"{shared.images:,}", part),
    ]
    if shared.correlation is not None:
        tiles.append(("Maps of one image", f"r = {number(shared.correlation)}", f"mean over {shared.maps:,} pairs"))
    return tiles


def _drift(drift: ClassDrift) -> dict[str, Any]:
    kind = band(drift.severity)
    lead = drift.place.d if drift.place is not None else drift.measures[0].d
    said = drift.sentence.removeprefix(f"{drift.name}: ")  # the name stands above it
    said = clean(said[:1].upper() + said[1:], 2000)
    return {"name": clean(drift.name, _NAMES), "sentence": said, "band": kind, "d": number(round(abs(lead), 1))}


def _rows(table: pa.Table) -> list[dict[str, Any]]:
    """Return the rows to show: what drifted, all classes together, and the largest differences."""
    found = table.to_pylist()
    found.sort(key=lambda row: (not row["drift"], row["class_a"] is not None, -abs(row["d"] or 0.0)))
    return [
        {
            **row,
            "name": "All compared classes" if row["name"] is None else clean(row["name"], _NAMES),
            "label": measure_label(row["measure"]),
            "order": MEASURE_INDEX[row["measure"]],
            "shown": {name: number(row[name]) for name in ("mean_a", "mean_b")}
            | {name: signed(row[name]) for name in ("difference", "low", "high")}
            | {"d": signed(row["d"], 2), "q": small(row["q"])},
        }
        for row in found[:_ROWS]
    ]


def _pairs(priors: pa.Table) -> list[dict[str, Any]]:
    """Return the classes whose maps are shown: those that drifted first, then by distance beyond chance."""
    rows = [row for row in priors.to_pylist() if row["mean_a"] is not None]
    rows.sort(key=lambda row: (not row["drift"], -((row["sample_distance"] or 0.0) - (row["chance"] or 0.0))))
    found = []
    for row in rows[:_PAIRS]:
        a, b = (np.asarray(row[name], np.float64).reshape(GRID, GRID) for name in ("mean_a", "mean_b"))
        found.append(
            {
                "name": clean(row["name"], _NAMES),
                "drift": row["drift"],
                "distance": f"{row['distance']:.1%}",
                "chance": "–" if row["chance"] is None else f"{row['chance']:.1%}",
                "q": small(row["q"]),
                "n": f"{row['n_a']:,} and {row['n_b']:,} maps",
                "correlation": None if row["correlation"] is None else number(row["correlation"]),
                "matched": f"{row['matched']:,}",
                "maps": _triple(a, b),
            }
        )
    return found


def _triple(a: Floats, b: Floats) -> list[tuple[str, str, str]]:
    """Return (name, picture, note) of A's and B's mean maps (GRID, GRID), and of their difference."""
    largest, moved = float(max(a.max(), b.max(), 1e-9)), b - a
    most = float(np.abs(moved).max())
    return [
        ("A", picture(a / largest), f"up to {number(largest)} times a uniform map"),
        ("B", picture(b / largest), "on the same scale"),
        ("B − A", picture(moved / (most or 1.0), signed=True), f"orange more, blue less: ±{number(most)}"),
    ]


def _moved(table: pa.Table) -> list[tuple[str, str, str, str]]:
    """Return (measure, A, B, difference) of all classes together, where the interval is beside 0; the largest first."""
    rows = [row for row in table.to_pylist() if row["class_a"] is None and row["comparable"] and row["d"] is not None]
    rows = [row for row in rows if row["low"] is not None and row["low"] * row["high"] > 0]
    rows.sort(key=lambda row: -abs(row["d"]))
    return [
        (
            measure_label(row["measure"]),
            number(row["mean_a"]),
            number(row["mean_b"]),
            f"{signed(row['difference'])} ({signed(row['low'])} to {signed(row['high'])})",
        )
        for row in rows[:_MOVED]
    ]


def picture(values: Floats, signed: bool = False) -> str:
    """Return a map (h, w) in [0, 1], or [-1, 1], as the URI of a PNG with a pixel per cell."""
    buffer = io.BytesIO()
    Image.fromarray(colourise(values, signed)).save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _policy(style: str, script: str) -> str:
    """Nothing is loaded from anywhere, and only this page's own style and script count."""
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digests[0]}'; script-src 'sha256-{digests[1]}'; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'"
    )


def _resource(package: str, name: str) -> str:
    return (resources.files(package) / name).read_text("utf-8")

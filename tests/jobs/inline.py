"""A whole job in this process, without Ray: the same plan, worker and lake."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from jobs.config import LABELS_SECTION, absolute, parse_job, parse_label_job
from pipeline.engine.run import make_manifest, resolve
from pipeline.engine.worker import AttributionWorker
from pipeline.lake import LakeStore, create_or_resume, finalize, new_attempt, open_lake, read_plan, verify
from pipeline.lake.plan import freeze
from pipeline.sources import open_source
from schemas.documents import Success

Maps = dict[tuple[str, str, str, int], tuple[dict[str, Any], npt.NDArray[np.float32]]]

# Columns of the maps table that say where a map lies.
_PLACE = ("store_path", "store_row", "unit_id")


def run_inline(document: dict[str, Any]) -> Success:
    """Run a job to its end, and verify its lake."""
    job = absolute(parse_label_job(document) if LABELS_SECTION in document else parse_job(document))
    plan = freeze(open_source(job.source).plan())
    store = LakeStore(job.output.uri, job.output.storage_options)
    run = create_or_resume(store, make_manifest(job, resolve(job), plan), plan)
    worker = AttributionWorker(job, run.manifest, "inline", device="cpu")
    worker.start()
    for unit in read_plan(store):
        worker.process(unit, new_attempt())
    success = finalize(store)
    verified = verify(store)
    assert verified.ok, verified.problems
    assert dict(verified.images) == success.images
    return success


def images_of(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Rows of the images table by image id."""
    rows = open_lake(document["output"]["uri"]).images.to_table().to_pylist()
    assert len({row["image_id"] for row in rows}) == len(rows)
    return {row["image_id"]: row for row in rows}


def maps_of(document: dict[str, Any]) -> Maps:
    """Rows of the maps table, without the place, and the raw maps, by image id, method, layer and class."""
    return {
        (row["image_id"], row["method"], row["layer"], row["target_class"]): (
            {name: value for name, value in row.items() if name not in _PLACE},
            values,
        )
        for row, values in open_lake(document["output"]["uri"]).heatmaps()
    }


def assert_same_maps(found: Maps, expected: Maps) -> None:
    """Assert that every expected map is there, with the same columns and the same bits."""
    assert expected
    for key, (row, values) in expected.items():
        assert key in found, key
        assert repr(found[key][0]) == repr(row), key  # NaN equals NaN
        assert found[key][1].tobytes() == values.tobytes(), key

"""Writes the golden lake of format version 1, ``tests/golden/v1``.

It was run once, with the release that first wrote this format, and is kept to show how the lake was made. Do not run it
again to make a test pass: a reader that fails on the golden lake has broken the format.

    python tests/golden/make_v1.py FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pipeline.lake.run import create_or_resume, finalize
from pipeline.lake.store import LakeStore
from tests.pipeline.lake.helpers import make_manifest, make_plan, make_result, sink_for, unit_id


def main(folder: str) -> None:
    """Write the lake, and beside it the raw maps as they were handed over (``expected.json``)."""
    store = LakeStore(str(Path(folder) / "lake"))
    plan = make_plan(2)
    manifest = create_or_resume(store, make_manifest(plan, run_id="golden-v1"), plan).manifest
    expected = []
    for index in range(2):
        result = make_result(unit_id(index), "golden", images=3)
        sink_for(store, manifest, "float16" if index == 0 else "uint8").write(result)
        for map_set in result.map_sets:
            for place, image in enumerate(map_set.targets.image_index.tolist()):
                expected.append(
                    {
                        "image_id": result.images[image]["image_id"],
                        "target_class": int(map_set.targets.target_class[place]),
                        "method": map_set.method,
                        "layer": map_set.layer,
                        "maps": [[repr(float(cell)) for cell in line] for line in map_set.maps[place]],
                    }
                )
    finalize(store)
    (Path(folder) / "expected.json").write_text(json.dumps(expected, indent=0) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])

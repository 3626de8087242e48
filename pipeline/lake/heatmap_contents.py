"""The objects of a lake of heatmaps: arrays and two tables per unit, each named by its attempt."""

from __future__ import annotations

import re

from pipeline.lake.contents import Contents
from pipeline.lake.verify_unit import UnitCheck, check_unit
from schemas import layout
from schemas.documents import Commit

_OBJECT = re.compile(
    rf"^(?:(?:{layout.IMAGES}|{layout.MAPS})/(?P<table>[^/]+)\.parquet"
    rf"|{layout.HEATMAPS}/[^/]+/[^/]+/(?P<array>[^/]+)\.zarr/(?:zarr\.json|c/0/0/0))$"
)


class HeatmapContents(Contents):
    """Arrays of maps, the images table and the maps table."""

    def owner(self, path: str) -> tuple[str, str] | None:
        """Return (unit id, attempt) of a data object by its name, or None where it is none of ours."""
        match = _OBJECT.match(path)
        if match is None:
            return None
        unit, dash, attempt = (match["table"] or match["array"]).rpartition("-")
        return (unit, attempt) if dash else None

    def check_unit(self, commit: Commit) -> UnitCheck:
        """Check arrays and tables against the commit, the manifest and each other."""
        return check_unit(self.store, self.manifest, commit)


CONTENTS = HeatmapContents

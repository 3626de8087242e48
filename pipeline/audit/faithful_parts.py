"""What was measured of an image stays in the audit's folder, so that a killed audit goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.audit.faithful_table import FAITHFUL_MEASURES, Row
from pipeline.audit.findings.base import Evidence
from pipeline.audit.parts_files import FOLDER as PARTS
from pipeline.cam.faithfulness import SHARES
from pipeline.lake import LakeStore
from schemas.audit import AUDIT_VERSION
from schemas.errors import LakeError

Floats = npt.NDArray[np.float64]

FOLDER = f"{PARTS}/faithfulness"


class Measured:
    """The values (R, M) of images, one object per image and class, named by all that they depend on.

    Args:
        output: the audit's folder; None keeps nothing.
        evidence: of the audit.
        rows: R, of which the values are.
    """

    def __init__(self, output: LakeStore | None, evidence: Evidence, rows: Sequence[Row]) -> None:
        self._output = output
        self._shape = (len(rows), len(FAITHFUL_MEASURES))
        manifest = evidence.lake.manifest
        self._stamp = [
            AUDIT_VERSION,
            manifest.run_id,
            manifest.model.digest,
            evidence.frame.settings.seed,
            [measure.name for measure in FAITHFUL_MEASURES],
            SHARES,
            rows,
        ]
        self._there = set() if output is None else {entry.path for entry in output.list(FOLDER)}

    def get(self, image_id: str, target: int) -> Floats | None:
        """Return the values of an image and class; None where they are not there.

        Raises:
            LakeError: the object is damaged, or cannot be read.
        """
        path = self._path(image_id, target)
        if self._output is None or path not in self._there:
            return None
        try:
            values = np.array(json.loads(self._output.get(path)), np.float64)  # null becomes NaN
        except (ValueError, TypeError):
            values = np.empty(0)
        if values.shape != self._shape:
            raise LakeError(f"{self._output.where(path)} is damaged; delete it, and run again")
        return values

    def put(self, image_id: str, target: int, values: Floats) -> None:
        """Keep the values of an image and class."""
        if self._output is not None:
            numbers = [[None if np.isnan(value) else value for value in row] for row in values.tolist()]
            self._output.put_if_absent(self._path(image_id, target), json.dumps(numbers).encode())

    def _path(self, image_id: str, target: int) -> str:
        about = json.dumps([*self._stamp, image_id, target])
        return f"{FOLDER}/{hashlib.sha256(about.encode()).hexdigest()[:24]}.json"

"""Writes the JSON Schemas of the job files and of the lake's documents: ``python -m schemas.export [--check]``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pydantic import BaseModel

from schemas.documents import DOCUMENTS
from schemas.job import Job
from schemas.label_job import LabelJob

FOLDER = Path(__file__).parent / "exported"


def exported() -> dict[str, str]:
    """Return the text of each exported schema by file name."""
    models: dict[str, type[BaseModel]] = {"job": Job, "label-job": LabelJob, **DOCUMENTS}
    return {
        f"{name}.schema.json": json.dumps(model.model_json_schema(), indent=2, sort_keys=True) + "\n"
        for name, model in models.items()
    }


def drifted() -> list[str]:
    """Return the names of the exported files that do not equal the code."""
    return [
        name
        for name, text in exported().items()
        if not (FOLDER / name).is_file() or (FOLDER / name).read_text(encoding="utf-8") != text
    ]


def main(arguments: list[str]) -> int:
    """Write the schemas, or with ``--check`` only say which have drifted (exit code 1)."""
    if "--check" in arguments:
        for name in (names := drifted()):
            print(f"schemas/exported/{name} is not what the code says; run: python -m schemas.export")
        return 1 if names else 0
    FOLDER.mkdir(exist_ok=True)
    for name, text in exported().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""``camlake schema``: the JSON Schema of the job file, for editors."""

from __future__ import annotations

import json

from jobs.run import main_of
from schemas.job import Job


def schema() -> None:
    """Print the JSON Schema of the job file (an editor completes and checks job files with it)."""
    print(json.dumps(Job.model_json_schema(), indent=2, sort_keys=True))


if __name__ == "__main__":
    main_of(schema)

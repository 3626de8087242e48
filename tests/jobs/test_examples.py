"""The example job files, and those in the README, are valid."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from jobs.config import LABELS_SECTION, absolute, load_job, load_label_job, parse_job
from schemas.job import Job

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "jobs" / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_valid(path: Path) -> None:
    of_labels = LABELS_SECTION in path.read_text(encoding="utf-8")
    job: Job = absolute(load_label_job(str(path)) if of_labels else load_job(str(path)))
    assert job.methods and all("://" in uri or uri.startswith("/") for uri in job.source.uris)


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 4


def test_the_job_file_of_the_readme_is_valid() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    jobs = [parse_job(yaml.safe_load(block), "README.md") for block in blocks]
    assert jobs and jobs[0].targets.top_k == 3

"""Every registered name has its file, and every file is registered."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.errors import InputError
from schemas.job import Job
from schemas.label_job import LabelJob
from schemas.registries import CONTENTS, EXPLAINERS, METHODS, SINKS, SOURCES, implementation


@pytest.mark.parametrize(
    ("registry", "kind", "attribute"),
    [
        (METHODS, "method", "METHOD"),
        (SOURCES, "format", "SOURCE"),
        (EXPLAINERS, "explainer", "EXPLAINER"),
        (SINKS, "sink", "SINK"),
        (CONTENTS, "kind of lake", "CONTENTS"),
    ],
)
def test_registered_modules_define_their_class(registry: dict[str, str], kind: str, attribute: str) -> None:
    for name in registry:
        assert isinstance(getattr(implementation(registry, kind, name), attribute), type)


def test_every_method_file_is_registered() -> None:
    folder = Path(__file__).parents[2] / "pipeline" / "cam"
    defining = {f"pipeline.cam.{path.stem}" for path in folder.glob("*.py") if "\nMETHOD = " in path.read_text()}
    assert defining == set(METHODS.values())


def test_every_kind_of_lake_is_explained_written_and_checked() -> None:
    assert set(EXPLAINERS) == set(SINKS) == set(CONTENTS) == {Job.kind, LabelJob.kind}


def test_unknown_names_list_the_near_ones() -> None:
    with pytest.raises(InputError, match=r"format 'parqet' is unknown \(did you mean parquet\?\)"):
        implementation(SOURCES, "format", "parqet")

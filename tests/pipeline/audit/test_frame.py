"""Settings against a lake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.audit.frame import Series, make_frame
from pipeline.lake import Lake, open_lake
from schemas.audit import Settings
from schemas.errors import InputError
from tests.pipeline.audit.lakes import LAYER, make_lake


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return open_lake(make_lake(tmp_path_factory.mktemp("frame") / "lake", units=2, methods=("grad_cam", "layer_cam")))


def test_the_first_method_is_the_audits(lake: Lake) -> None:
    frame = make_frame(lake, Settings())
    assert frame.series == (Series("grad_cam", LAYER), Series("layer_cam", LAYER)) and frame.primary == 0
    assert (frame.settings.method, frame.settings.layer) == ("grad_cam", LAYER)
    assert frame.images == 80 and frame.digest_limit == 2**64 - 1
    assert frame.name(2) == "name-2" and frame.name(99) == "class 99"
    assert make_frame(lake, Settings(method="layer_cam")).primary == 1


def test_the_sample_is_shared_by_the_classes(lake: Lake) -> None:
    assert make_frame(lake, Settings(sample=2000)).sample_per_class == 500
    assert make_frame(lake, Settings(sample=100)).sample_per_class == 50
    assert make_frame(lake, Settings(sample=10_000_000)).sample_per_class == 4000


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"groups": ("sites",)}, "--groups: the lake has no column 'sites' .did you mean site"),
        ({"cluster": "patent"}, "--cluster: the lake has no column 'patent' .did you mean patient"),
        ({"groups": ("sha256",)}, "no column 'sha256'"),
        (
            {"method": "grad"},
            "--method: the lake holds no 'grad' .did you mean grad_cam.*it holds: grad_cam, layer_cam",
        ),
        ({"layer": "layer5"}, "--layer: 'grad_cam' has no layer 'layer5' .did you mean layer4"),
    ],
)
def test_what_the_lake_does_not_have_is_named(lake: Lake, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make_frame(lake, Settings(**settings))


def test_columns_of_the_images_table_can_be_groups(lake: Lake) -> None:
    assert make_frame(lake, Settings(groups=("site", "status"))).settings.groups == ("site", "status")


def test_a_lake_without_units_is_refused(tmp_path: Path) -> None:
    empty = open_lake(make_lake(tmp_path / "lake", units=1))
    empty.commits.clear()
    with pytest.raises(InputError, match="no committed unit yet"):
        make_frame(empty, Settings())

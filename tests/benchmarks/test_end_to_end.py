"""The whole job against its core, on a small network, on disk and in a bucket."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable

import pytest
import torch

from benchmarks import end_to_end
from schemas.errors import CamlakeError
from tests.benchmarks.conftest import NET, NORMALISED, Document


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_jobs_write_the_maps_of_the_core(document: Callable[..., Document]) -> None:
    sizes = ("--size", 48, "--count", 5, "--shard-images", 2, "--score-count", 2, "--batch-size", 2)
    found = document(end_to_end.main, "--model", NET, "--score-model", NET, *sizes, *NORMALISED)
    works = [row["work"] for row in found["rows"]]
    assert works == [
        f"Grad-CAM, {NET}, 3 images, local disk",
        f"Grad-CAM, {NET}, 3 images, S3 server",
        f"Score-CAM, {NET}, 1 images, local disk",
        f"Score-CAM, {NET}, 1 images, S3 server",
    ]
    for row in found["rows"]:
        assert row["peer"] == "core alone"
        assert 0 < row["agreement"] <= 2.0**-12  # half a step of float16 below 1
    stages = [note for note in found["notes"] if "seconds over all shards: read" in note]
    assert len(stages) == 4 and all("compute" in note and "worker-001" in note for note in stages)


def test_shards_hold_the_images_in_order() -> None:
    files = dict(end_to_end.write_shards([[b"\x89PNGa", b"b"], [b"c"]]))
    assert list(files) == ["shard-000000.tar", "shard-000001.tar"]
    with tarfile.open(fileobj=io.BytesIO(files["shard-000000.tar"])) as tar:
        assert tar.getnames() == ["image-000000.png", "image-000001.jpg"]
    with tarfile.open(fileobj=io.BytesIO(files["shard-000001.tar"])) as tar:
        [member] = tar.getmembers()
        extracted = tar.extractfile(member)
        assert member.name == "image-000002.jpg" and extracted is not None and extracted.read() == b"c"


def test_the_difference_is_the_largest_and_a_missing_map_is_an_error() -> None:
    maps = {(1, 4): torch.zeros(2, 2), (2, 3): torch.ones(2, 2)}
    stored = {(1, 4): torch.full((2, 2), 0.25), (2, 3): torch.ones(2, 2), (0, 0): torch.ones(2, 2)}
    assert end_to_end.difference(maps, stored) == 0.25
    with pytest.raises(CamlakeError, match=r"lacks 1 of 2 maps, such as \(image, class\) \(2, 3\)"):
        end_to_end.difference(maps, {(1, 4): torch.zeros(2, 2)})


def test_one_shard_is_too_few(capsys: pytest.CaptureFixture[str]) -> None:
    assert end_to_end.main(["--model", NET, "--count", "2", "--shard-images", "2"]) == 2
    assert "raise --count" in capsys.readouterr().err

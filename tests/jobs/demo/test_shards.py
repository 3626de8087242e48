"""Shards: plain tar files with four members a sample, the same bytes every time."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.demo.scenes import Scene, SceneSpec, make_scenes
from jobs.demo.shards import write_shards
from schemas.errors import InputError


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    spec = SceneSpec(sites=("east",), prevalence=0.5)
    return make_scenes(22, split="test", seed=3, spec=spec)


def _read(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        members = {}
        for member in tar:
            handle = tar.extractfile(member)
            assert handle is not None
            members[member.name] = handle.read()
    return members


def test_all_members_come_back(scenes: list[Scene], tmp_path: Path) -> None:
    paths = write_shards(scenes, tmp_path / "new" / "shards", shards=4)
    assert [path.name for path in paths] == [f"scenes-{number:06d}.tar" for number in range(4)]
    parts = [_read(path) for path in paths]
    assert [len(part) // 4 for part in parts] == [5, 6, 5, 6]
    # WebDataset groups adjacent members by what stands before the first dot.
    names = [name for part in parts for name in part]
    suffixes = ("png", "cls", "json", "mask.png")
    assert names == [f"scene-{index:06d}.{suffix}" for index in range(22) for suffix in suffixes]
    members = {name: data for part in parts for name, data in part.items()}
    for index, scene in enumerate(scenes):
        name = f"scene-{index:06d}"
        image = Image.open(io.BytesIO(members[f"{name}.png"]))
        assert image.mode == "RGB"
        assert np.array_equal(np.asarray(image), scene.pixels)
        mask = Image.open(io.BytesIO(members[f"{name}.mask.png"]))
        assert mask.mode == "L"
        assert np.array_equal(np.asarray(mask), scene.masks)
        assert int(members[f"{name}.cls"]) == scene.labels[0]
        told = json.loads(members[f"{name}.json"])
        assert told["id"] == name
        assert told["label"] == scene.labels[0]
        assert told["labels"] == list(scene.labels)
        assert told["boxes"] == [list(box) for box in scene.boxes]
        assert (told["site"], told["background"]) == (scene.site, scene.background)
        assert told["sticker"] is (scene.sticker is not None)
        assert told["sticker_box"] == (list(scene.sticker) if scene.sticker else None)
    assert any(scene.sticker for scene in scenes)
    eight = next(index for index, scene in enumerate(scenes) if scene.labels[0] == 8)
    told = json.loads(members[f"scene-{eight:06d}.json"])
    assert told["label_name"] == "eight"
    assert told["label_names"][0] == "eight"


def test_the_same_scenes_give_the_same_bytes(scenes: list[Scene], tmp_path: Path) -> None:
    first = write_shards(scenes, tmp_path / "a", shards=2)
    second = write_shards(scenes, tmp_path / "b", shards=2)
    for one, two in zip(first, second, strict=True):
        assert hashlib.sha256(one.read_bytes()).digest() == hashlib.sha256(two.read_bytes()).digest()
    with tarfile.open(first[0]) as tar:
        assert {(member.mtime, member.uid, member.uname, member.mode) for member in tar} == {(0, 0, "", 0o644)}


def test_writing_again_replaces_but_never_mixes(scenes: list[Scene], tmp_path: Path) -> None:
    before = write_shards(scenes[:8], tmp_path, shards=2)
    assert write_shards(scenes, tmp_path, shards=2) == before
    assert len(_read(before[0])) == 44
    with pytest.raises(InputError, match=r"scenes-000001\.tar; remove them"):
        write_shards(scenes, tmp_path, shards=1)


def test_progress_counts_scenes(scenes: list[Scene], tmp_path: Path) -> None:
    told: list[int] = []
    write_shards(scenes, tmp_path, shards=3, progress=told.append)
    assert told == [7, 7, 8]


@pytest.mark.parametrize("shards", [0, 23])
def test_impossible_numbers_of_shards(scenes: list[Scene], tmp_path: Path, shards: int) -> None:
    with pytest.raises(InputError, match=f"shards is {shards} for 22 scenes"):
        write_shards(scenes, tmp_path, shards=shards)


def test_the_pipelines_source_reads_them(scenes: list[Scene], tmp_path: Path) -> None:
    from pipeline.sources import open_source
    from schemas.job import Source

    write_shards(scenes, tmp_path, shards=2)
    config = Source.model_validate(
        {
            "uri": f"{tmp_path}/scenes-{{000000..000001}}.tar",
            "format": "webdataset",
            "label": "cls",
            "attributes": ["site", {"name": "sticker", "type": "bool"}],
        }
    )
    source = open_source(config)
    samples = [sample for unit in source.plan() for sample in source.read(unit)]
    assert len(samples) == 22
    for scene, sample in zip(scenes, samples, strict=True):
        assert sample.error is None
        assert sample.data is not None
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(sample.data))), scene.pixels)
        assert int(sample.label or 0) == scene.labels[0]
        assert sample.attributes == {"site": scene.site, "sticker": scene.sticker is not None}

"""One job over all hostile images and shards: a row for each, and the same maps for their neighbours."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline.lake import LakeStore
from pipeline.lake.documents import read_commits, read_manifest
from pipeline.sources.fields import IMAGE_SUFFIXES
from tests.hostile import Hostile, images
from tests.hostile_containers import containers, image, tar
from tests.jobs.conftest import WIDTHS
from tests.jobs.inline import assert_same_maps, images_of, maps_of, run_inline

SHARDS = 3
METHODS: list[Any] = [
    "grad_cam",
    "score_cam",
    {"name": "score_cam", "label": "budget", "budget": 2},
    {"name": "smooth_grad_cam_pp", "samples": 2},
]

# Pillow and its plugins warn of what they find in damaged files.
pytestmark = pytest.mark.filterwarnings("ignore")


def hostile_members() -> dict[str, Hostile]:
    """The hostile images under names that make one sample each."""
    found = {}
    for number, (name, item) in enumerate(images().items()):
        stem, _, suffix = name.rpartition(".")
        found[f"bad {number:03d} {stem.replace('.', ' ')}.{suffix if suffix in IMAGE_SUFFIXES else 'jpg'}"] = item
    return found


def write_shards(folder: Path, bad: dict[str, bytes]) -> str:
    """Shards of a few good images each, with the bad ones spread between them."""
    folder.mkdir()
    names = list(bad)
    for shard in range(SHARDS):
        mine = names[shard::SHARDS]
        members = []
        for number in range(5):
            members.append((f"good {number}.png", image(10 * shard + number)))
            members += [(name, bad[name]) for name in mine[number::5]]
        (folder / f"s-{shard}.tar").write_bytes(tar(members))
    return str(folder / f"s-{{0..{SHARDS - 1}}}.tar")


def job(document: dict[str, Any], uri: str | list[str], lake: Path, **preprocess: Any) -> dict[str, Any]:
    """The job of the conftest over other shards."""
    model = document["model"] | ({"preprocess": preprocess} if preprocess else {})
    return document | {
        "source": {"uri": uri, "format": "webdataset"},
        "model": model,
        "targets": "predicted",
        "methods": METHODS,
        "output": {"uri": str(lake)},
    }


@pytest.mark.parametrize("exif", [None, "apply"])
def test_every_image_has_its_row_and_no_neighbour_changes(
    exif: str | None, document: dict[str, Any], tmp_path: Path
) -> None:
    assert document["model"]["options"] == {"widths": WIDTHS}
    hostile = hostile_members()
    given = {} if exif is None else {"exif": exif}
    alone = job(document, write_shards(tmp_path / "alone", {}), tmp_path / "lake alone", **given)
    among = job(
        document,
        write_shards(tmp_path / "among", {name: item.data for name, item in hostile.items()}),
        tmp_path / "lake among",
        **given,
    )
    run_inline(alone)
    success = run_inline(among)
    rows, maps = images_of(among), maps_of(among)
    assert len(rows) == len(hostile) + 5 * SHARDS
    by_name = {key.partition("/")[2]: row for key, row in rows.items() if "/bad" in key}
    for name, item in hostile.items():
        row = by_name.pop(name.rpartition(".")[0])
        if item.reason is None:
            assert (row["status"], row["error"]) == ("ok", None)
            assert row["predicted_probability"] > 0 and (row["image_id"], "grad_cam") in {key[:2] for key in maps}
            turned = exif == "apply" and (row["exif_orientation"] or 1) >= 5
            assert (row["width"], row["height"]) == (item.size[::-1] if turned else item.size)
        else:
            assert row["status"] == "decode_error" and re.search(item.reason, row["error"])
            assert row["predicted_class"] is None and row["image_id"] not in {key[0] for key in maps}
        assert row["byte_size"] == len(item.data)
    assert not by_name
    failed = sum(item.reason is not None for item in hostile.values())
    assert success.images == {"decode_error": failed, "ok": len(rows) - failed}
    assert_same_maps(maps, maps_of(alone))
    assert {key: rows[key] for key in images_of(alone)} == {
        key: row | {"byte_offset": rows[key]["byte_offset"], "uri": rows[key]["uri"]}
        for key, row in images_of(alone).items()
    }
    said = read_manifest(LakeStore(among["output"]["uri"])).model.preprocess
    assert said["exif"] == (exif or "ignore")
    orientations = Counter(row["exif_orientation"] for row in rows.values())
    assert all(orientations[value] >= 1 for value in range(1, 9))


def test_exif_changes_the_maps_of_turned_images_only(document: dict[str, Any], tmp_path: Path) -> None:
    turned = {name: item.data for name, item in hostile_members().items() if "orientation" in name}
    uri = write_shards(tmp_path / "shards", turned)
    lakes = {exif: job(document, uri, tmp_path / exif, exif=exif) for exif in ("ignore", "apply")}
    for each in lakes.values():
        run_inline(each)
    ignored, applied = (
        {key: values for key, (_, values) in maps_of(each).items() if key[1] == "grad_cam"} for each in lakes.values()
    )
    orientation = {key: row["exif_orientation"] for key, row in images_of(lakes["apply"]).items()}
    same = {key[0]: key in applied and ignored[key].tobytes() == applied[key].tobytes() for key in ignored}
    assert all(same[key] == ((value or 1) == 1) for key, value in orientation.items() if key in same)
    assert sum(not each for each in same.values()) >= 7


def test_damaged_shards_keep_their_good_images_and_say_what_is_wrong(document: dict[str, Any], tmp_path: Path) -> None:
    shards = {name: item for name, item in containers().items() if item.format == "webdataset" and not item.at_plan}
    # Of an image the same bytes give the same maps, in whatever shard.
    (tmp_path / "0 all.tar").write_bytes(tar([(f"{number}.png", image(number)) for number in range(20)]))
    paths = [str(tmp_path / "0 all.tar")]
    for name, item in shards.items():
        (tmp_path / name).write_bytes(item.data)
        paths.append(str(tmp_path / name))
    several = job(document, paths, tmp_path / "lake") | {"methods": ["grad_cam", "score_cam"]}
    success = run_inline(several)
    rows = images_of(several)
    good = sum(len(item.good) for item in shards.values()) + 20
    bad = sum(len(item.bad) + (item.ends is not None) for item in shards.values())
    assert success.images == {"ok": good, "read_error": bad} and success.units == len(paths)
    damaged = [row["error"] for row in rows.values() if row["image_id"].endswith("#damaged")]
    assert len(damaged) == sum(item.ends is not None for item in shards.values()) and all(damaged)
    of_bytes: dict[tuple[bytes, str, int], bytes] = {}
    for (image_id, method, _, target), (_, values) in maps_of(several).items():
        key = (rows[image_id]["sha256"], method, target)
        assert of_bytes.setdefault(key, values.tobytes()) == values.tobytes()
    by_unit = Counter(
        {commit.unit_id: sum(commit.images.values()) for commit in read_commits(LakeStore(several["output"]["uri"]))}
    )
    assert sum(by_unit.values()) == good + bad and min(by_unit.values()) == 0  # a shard without members

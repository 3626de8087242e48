"""Numbers that are none, and images that come to nothing: recorded and counted, and no neighbour's map changes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pipeline.lake import LakeStore
from pipeline.lake.documents import read_commits
from tests.hostile import encode
from tests.hostile_containers import tar
from tests.jobs.inline import Maps, assert_same_maps, images_of, maps_of, run_inline

METHODS: list[Any] = [
    "grad_cam",
    "grad_cam_pp",
    {"name": "smooth_grad_cam_pp", "samples": 2},
    "score_cam",
    {"name": "score_cam", "label": "authors", "convention": "authors"},
    {"name": "score_cam", "label": "budget", "budget": 2, "expected_correlation": 0.9},
    {"name": "layer_cam", "layers": ["stage3", "features"], "fuse": "tanh_max"},
    "hires_cam",
    "xgrad_cam",
    "eigen_cam",
]
MASKING = {"score_cam", "authors", "budget"}
SHARDS, IMAGES = 2, 6


def scene(seed: int, bright: bool) -> bytes:
    """A picture of blobs that is dark, or so bright that the faulty networks know it."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (7, 7, 3), dtype=np.uint8))
    values: npt.NDArray[np.uint8] = np.array(small.resize((96, 96), Image.Resampling.BICUBIC))
    return encode(Image.fromarray((200 + values // 5 if bright else values // 2).astype(np.uint8)), "PNG")


def write_shards(folder: Path, *, marked: bool) -> str:
    """Shards of dark images, with bright ones between them if they are asked for."""
    folder.mkdir()
    for shard in range(SHARDS):
        members = []
        for number in range(IMAGES):
            members.append((f"dark {number}.png", scene(100 * shard + number, False)))
            if marked and number % 2:
                members.append((f"marked {number}.png", scene(1000 + 100 * shard + number, True)))
        (folder / f"s-{shard}.tar").write_bytes(tar(members))
    return str(folder / f"s-{{0..{SHARDS - 1}}}.tar")


def job(uri: str | list[str], lake: Path, fault: str, **more: Any) -> dict[str, Any]:
    """A job with a faulty network and nearly all methods."""
    return {
        "source": {"uri": uri, "format": "webdataset"},
        "model": {
            "name": "tests.jobs.faulty_models:faulty",
            "weights": "random",
            "options": {"fault": fault},
            "layers": ["features"],
        },
        "targets": {"predicted": True, "classes": [3]},
        "methods": METHODS,
        "output": {"uri": str(lake)},
        "compute": {"batch_size": 4, "mask_batch": 8},
    } | more


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Shards without and with marked images."""
    folder = tmp_path_factory.mktemp("numbers")
    return write_shards(folder / "dark", marked=False), write_shards(folder / "mixed", marked=True)


@pytest.fixture(scope="module")
def dark(shards: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Maps:
    """Maps of the dark images alone, by a network without a fault."""
    alone = job(shards[0], tmp_path_factory.mktemp("dark") / "lake", "none")
    run_inline(alone)
    return maps_of(alone)


def marked_rows(document: dict[str, Any]) -> list[dict[str, Any]]:
    rows = [row for key, row in images_of(document).items() if "marked" in key]
    assert len(rows) == SHARDS * IMAGES // 2
    return rows


def marked_maps(document: dict[str, Any]) -> list[tuple[dict[str, Any], npt.NDArray[np.float32]]]:
    return [found for key, found in maps_of(document).items() if "marked" in key[0]]


@pytest.mark.parametrize(
    ("fault", "activation", "classes"),
    [
        ("nan", "softmax", 10),
        ("one_nan", "softmax", 1),
        ("inf", "softmax", 10),
        ("one_inf", "softmax", 1),
        ("nan", "sigmoid", 10),
        ("one_nan", "sigmoid", 1),
    ],
)
def test_an_image_without_probabilities_fails_and_says_so(
    fault: str, activation: str, classes: int, shards: tuple[str, str], dark: Maps, tmp_path: Path
) -> None:
    mixed = job(shards[1], tmp_path / "lake", fault)
    mixed["model"]["activation"] = activation
    success = run_inline(mixed)
    assert success.images == {"model_error": 6, "ok": 12}
    assert [commit.images for commit in read_commits(LakeStore(mixed["output"]["uri"]))] == [
        {"model_error": 3, "ok": 6}
    ] * SHARDS
    for row in marked_rows(mixed):
        assert row["status"] == "model_error"
        assert row["error"] == (
            f"the model gave NaN or infinity for {classes} of 10 classes; check its weights and model.precision"
        )
        assert row["predicted_class"] is row["predicted_probability"] is None and row["sha256"] is not None
    assert not marked_maps(mixed)
    if activation == "softmax":
        assert_same_maps(maps_of(mixed), dark)


@pytest.mark.parametrize(("fault", "activation"), [("one_minus_inf", "softmax"), ("one_inf", "sigmoid")])
def test_a_class_of_certainty_is_no_fault(
    fault: str, activation: str, shards: tuple[str, str], dark: Maps, tmp_path: Path
) -> None:
    mixed = job(shards[1], tmp_path / "lake", fault)
    mixed["model"]["activation"] = activation
    assert run_inline(mixed).images == {"ok": 18}
    for row in marked_rows(mixed):
        assert (row["predicted_class"] == 3) == (fault == "one_inf") and row["error"] is None
    third = [row for row, _ in marked_maps(mixed) if row["target_class"] == 3]
    assert len(third) >= 6 * len(METHODS)
    assert {(row["logit"], row["probability"]) for row in third} == {
        (-math.inf, 0.0) if fault == "one_minus_inf" else (math.inf, 1.0)
    }
    if activation == "softmax":
        assert_same_maps(maps_of(mixed), dark)


@pytest.mark.parametrize("fault", ["nan_features", "inf_features"])
@pytest.mark.parametrize("dtype", ["float16", "uint8"])
def test_maps_that_are_not_finite_are_flagged(
    fault: str, dtype: str, shards: tuple[str, str], dark: Maps, tmp_path: Path
) -> None:
    mixed = job(shards[1], tmp_path / "lake", fault, output={"uri": str(tmp_path / "lake"), "dtype": dtype})
    assert run_inline(mixed).images == {"ok": 18}
    found = marked_maps(mixed)
    assert len({row["method"] for row, _ in found}) == len(METHODS)
    for row, values in found:
        assert row["not_finite"] and not row["all_zero"]
        assert math.isnan(row["vmax"]) and row["entropy"] is None and np.isnan(values).all()
        assert math.isfinite(row["logit"]) and math.isfinite(row["probability"])
    if dtype == "float16":
        assert_same_maps(maps_of(mixed), dark)


def test_maps_of_zeros_are_flagged(shards: tuple[str, str], dark: Maps, tmp_path: Path) -> None:
    mixed = job(shards[1], tmp_path / "lake", "zero_features")
    run_inline(mixed)
    for row, values in marked_maps(mixed):
        if row["layer"] == "features":
            assert row["all_zero"] and row["constant"] and not row["not_finite"]
            assert row["vmax"] == row["mass"] == 0 and row["peak_x"] is row["gini"] is None and not values.any()
    assert_same_maps(maps_of(mixed), dark)


def test_maps_beyond_float32_are_flagged_and_large_ones_are_not(
    shards: tuple[str, str], dark: Maps, tmp_path: Path
) -> None:
    mixed = job(shards[1], tmp_path / "lake", "huge_features")
    assert run_inline(mixed).images == {"ok": 18}
    found = marked_maps(mixed)
    for row, values in found:
        assert row["not_finite"] == (not np.isfinite(values).all())
    assert any(not row["not_finite"] and row["vmax"] > 1e25 for row, _ in found)
    assert_same_maps(maps_of(mixed), dark)


def test_masked_images_without_numbers_spoil_the_methods_that_mask(
    shards: tuple[str, str], dark: Maps, tmp_path: Path
) -> None:
    mixed = job(shards[1], tmp_path / "lake", "masked_nan")
    assert run_inline(mixed).images == {"ok": 18}
    found = marked_maps(mixed)
    for row, _ in found:
        assert row["method"] in MASKING or not row["not_finite"]
    spoilt = [row for row, _ in found if row["not_finite"]]
    assert {row["method"] for row in spoilt} == MASKING
    # Nothing can be predicted from such scores, so the budget is no bound: all masks are scored.
    took = {
        name: {(row["image_id"], row["target_class"]): row["masks_scored"] for row in spoilt if row["method"] == name}
        for name in ("score_cam", "budget")
    }
    assert took["budget"] == {key: took["score_cam"][key] for key in took["budget"]}
    assert_same_maps(maps_of(mixed), dark)


def test_one_image_at_a_time(shards: tuple[str, str], tmp_path: Path) -> None:
    compute = {"batch_size": 1, "mask_batch": 1}
    alone = job(shards[0], tmp_path / "alone", "none", compute=compute)
    mixed = job(shards[1], tmp_path / "mixed", "nan", compute=compute)
    run_inline(alone)
    assert run_inline(mixed).images == {"model_error": 6, "ok": 12}
    assert_same_maps(maps_of(mixed), maps_of(alone))


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_one_class(activation: str, shards: tuple[str, str], tmp_path: Path) -> None:
    single = job(shards[0], tmp_path / "lake", "none", targets={"predicted": True, "top_k": 5})
    single["model"] |= {"options": {"fault": "none", "num_classes": 1}, "activation": activation}
    success = run_inline(single)
    assert success.images == {"ok": 12} and success.maps == 12 * len(METHODS)
    for row in images_of(single).values():
        assert row["predicted_class"] == 0
        assert (row["predicted_probability"] == 1.0) == (activation == "softmax")
    assert not any(row["not_finite"] for row, _ in maps_of(single).values())


def test_shards_without_images(shards: tuple[str, str], dark: Maps, tmp_path: Path) -> None:
    (tmp_path / "0 none readable.tar").write_bytes(tar([(f"{n}.png", b"no image %d" % n) for n in range(5)]))
    (tmp_path / "1 empty.tar").write_bytes(tar([]))
    paths = [str(tmp_path / name) for name in ("0 none readable.tar", "1 empty.tar")]
    several = job([*paths, shards[0]], tmp_path / "lake", "none")
    success = run_inline(several)
    assert success.images == {"decode_error": 5, "ok": 12} and success.units == 4
    commits = sorted(read_commits(LakeStore(several["output"]["uri"])), key=lambda commit: commit.unit_id)
    assert [(commit.images, commit.maps) for commit in commits[:2]] == [({"decode_error": 5}, 0), ({}, 0)]
    found = {(key[0].rpartition("/s-")[2], *key[1:]): values.tobytes() for key, (_, values) in maps_of(several).items()}
    assert found == {(key[0].rpartition("s-")[2], *key[1:]): values.tobytes() for key, (_, values) in dark.items()}


def test_nothing_over_the_threshold(shards: tuple[str, str], dark: Maps, tmp_path: Path) -> None:
    none = job(shards[0], tmp_path / "none", "none", targets={"threshold": 0.999999})
    success = run_inline(none)
    assert success.images == {"ok": 12} and success.maps == 0
    assert all(row["predicted_class"] is not None and row["error"] is None for row in images_of(none).values())
    assert [commit.maps for commit in read_commits(LakeStore(none["output"]["uri"]))] == [0, 0]
    # A threshold that some images pass: the others have no maps, and those have the maps that they have in any company.
    best = sorted(row["predicted_probability"] for row in images_of(none).values())
    some = job(shards[0], tmp_path / "some", "none", targets={"threshold": (best[5] + best[6]) / 2})
    success = run_inline(some)
    found = maps_of(some)
    assert success.images == {"ok": 12} and len({key[0] for key in found}) == 6
    assert len(found) == success.maps == 6 * len(METHODS)
    predicted = {(key, row["predicted_class"]) for key, row in images_of(some).items()}
    assert {(key[0], key[3]) for key in found} <= predicted
    assert {key: values.tobytes() for key, (_, values) in found.items()} == {
        key: dark[key][1].tobytes() for key in found
    }

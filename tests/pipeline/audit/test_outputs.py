"""What an audit leaves, against the lake read plainly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
import zarr

from pipeline.audit.canonical import canonical
from pipeline.audit.keys import keys_of, poisson_weights
from pipeline.audit.outputs import findings_json, findings_table, ranked, write
from pipeline.audit.run import AuditResult, run_audit
from pipeline.lake import Lake, LakeStore, StoreError, open_lake
from schemas.audit import FINDINGS, GROUPS, AuditManifest, CausalCheck, Finding, ImageRef, Settings
from tests.pipeline.audit.lakes import Maps, Rows, make_lake
from tests.pipeline.lake.helpers import WrappedStore

pytestmark = pytest.mark.usefixtures("one_kind")
SETTINGS = Settings(groups=("site", "camera"), bootstrap=60, suppressed_below=12, interval_from=25)


def higher_in_the_east(
    maps: Maps,
    rows: Rows,
    image: npt.NDArray[np.int64],
    target: npt.NDArray[np.int64],
    rng: np.random.Generator,
) -> None:
    maps[rows.site[image] == 0, 0] += 3e-5


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    folder = tmp_path_factory.mktemp("outputs") / "lake"
    uri = make_lake(folder, units=4, images=60, methods=("grad_cam", "layer_cam"), paint=higher_in_the_east)
    return open_lake(uri)


@pytest.fixture
def result(lake: Lake, tmp_path: Path) -> AuditResult:
    return run_audit(lake.store.uri, SETTINGS, str(tmp_path / "out"), say=lambda line: None)


def measured(lake: Lake, method: str = "grad_cam") -> list[dict[str, Any]]:
    """Rows of the maps table of predicted classes, with what is needed of their images, and ``map``."""
    images = {row["image_id"]: row for row in lake.images.to_table().to_pylist()}
    found = []
    for row, values in lake.heatmaps(method=method):
        if row["is_predicted"]:
            image = images[row["image_id"]]
            right = "right" if image["label"] == image["predicted_class"] else "wrong"
            found.append({**row, "site": image["site"], "outcome": right, "map": values})
    return found


def test_the_groups_table_has_the_numbers_of_the_lake(result: AuditResult, lake: Lake) -> None:
    table = pq.read_table(Path(result.output) / "groups.parquet")
    assert table.schema.remove_metadata().equals(GROUPS.remove_metadata())
    assert table.equals(result.groups.cast(table.schema))
    rows = table.to_pylist()
    checked = 0
    for method in ("grad_cam", "layer_cam"):
        maps = measured(lake, method)
        for row in rows:
            if row["method"] != method or row["measure"] != "gini" or row["attribute"] == "camera":
                continue
            mine = [
                each
                for each in maps
                if (row["target_class"] in (None, each["target_class"]))
                and (row["value"] in (None, each["site"]))
                and (row["outcome"] in ("all", each["outcome"]))
            ]
            gini = np.array([each["gini"] for each in mine if each["gini"] is not None])
            assert row["n"] == len(gini) >= 12
            assert row["all_zero"] == sum(each["all_zero"] for each in mine)
            checked += 1
            if row["n"] < 25:
                assert all(row[name] is None for name in ("mean", "std", "low", "high", "q05", "median", "q95"))
                continue
            assert row["mean"] == pytest.approx(gini.mean(), abs=1e-6)
            assert row["std"] == pytest.approx(gini.std(ddof=1), abs=1e-5)
            assert row["median"] == pytest.approx(np.median(gini), abs=0.03)
            assert row["q05"] < row["median"] < row["q95"]
            if method == "layer_cam":
                assert row["low"] is None and row["high"] is None
                continue
            ids = [each["image_id"] for each in mine if each["gini"] is not None]
            weights = poisson_weights(keys_of(ids, 0), 60).astype(float)
            means = (weights * gini[:, None]).sum(0) / weights.sum(0)
            assert (row["low"], row["high"]) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=1e-6)
    # Of both methods: classes, sites and outcomes, and all of each, as far as they are not too few.
    assert checked > 60


def test_small_groups_are_not_shown(result: AuditResult, lake: Lake) -> None:
    maps = measured(lake)
    shown = {
        (row["target_class"], row["value"], row["outcome"])
        for row in result.groups.to_pylist()
        if row["attribute"] == "site" and row["measure"] == "gini" and row["method"] == "grad_cam"
    }
    small = 0
    for target in range(4):
        for site in ("east", "north", "south"):
            mine = [e for e in maps if (e["target_class"], e["site"], e["outcome"]) == (target, site, "wrong")]
            count = sum(each["gini"] is not None for each in mine)
            assert ((target, site, "wrong") in shown) == (count >= 12)
            small += count < 12
    assert small
    assert "energy" not in set(result.groups["measure"].to_pylist())  # nothing is known of objects


def test_maps_open_with_zarr_and_are_those_of_the_lake(result: AuditResult, lake: Lake) -> None:
    group = zarr.open_group(str(Path(result.output) / "maps.zarr"), mode="r")
    maps = measured(lake)
    density = {id(each): canonical(each["map"][None])[0] for each in maps}
    sound = [each for each in maps if np.isfinite(density[id(each)]).all()]
    assert group["class"][...].tolist() == [0, 1, 2, 3]
    assert group.attrs["class_names"] == [f"name-{number}" for number in range(4)]
    values = group["groups/site"].attrs["values"]
    assert values == ["east", "north", "south"] and group["groups/site"].attrs["attribute"] == "site"
    for target in range(4):
        mine = [each for each in sound if each["target_class"] == target]
        stack = np.stack([density[id(each)] for each in mine])
        assert group["count"][target] == len(mine)
        assert np.allclose(group["mean"][target], stack.mean(0), atol=2e-3)
        assert np.allclose(group["variance"][target], stack.var(0, ddof=1), atol=2e-2)
        for place, site in enumerate(values):
            east = np.array([each["site"] == site for each in mine])
            assert group["groups/site/count"][place, target] == east.sum()
            difference = stack[east].mean(0) - stack[~east].mean(0)
            assert np.allclose(group["groups/site/difference"][place, target], difference, atol=4e-3)
        # What was painted is seen where it was painted.
        assert group["groups/site/difference"][0, target][:2].mean() > 0.2
    assert group["parts"].shape[1:] == (14, 14) and np.allclose(group["parts"][...].mean((1, 2)), 1, atol=1e-5)


def test_maps_of_small_groups_are_not_shown(lake: Lake, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"suppressed_below": 20})
    result = run_audit(lake.store.uri, settings, str(tmp_path / "out"), say=lambda line: None)
    group = zarr.open_group(str(Path(result.output) / "maps.zarr"), mode="r")
    count, mean = group["groups/site/count"][...], group["groups/site/mean"][...]
    assert (count == 0).any() and (count > 0).any() and not ((count > 0) & (count < 20)).any()
    assert np.isnan(mean[count == 0]).all() and np.isfinite(mean[count > 0]).all()


def test_findings_are_ranked_and_written_twice(result: AuditResult) -> None:
    table = pq.read_table(Path(result.output) / "findings.parquet")
    assert table.schema.remove_metadata().equals(FINDINGS.remove_metadata())
    rows = table.to_pylist()
    listed = json.loads((Path(result.output) / "findings.json").read_text())
    assert [Finding.model_validate(each) for each in listed] == [
        each.model_copy(update={"details": {**each.details, "nothing": None}}) for each in result.findings
    ]
    assert [row["position"] for row in rows] == [0, 1, 2, 3] == list(range(result.manifest.findings))
    assert [row["severity"] for row in rows] == sorted((row["severity"] for row in rows), reverse=True)
    assert [row["finding_id"] for row in rows] == [each["finding_id"] for each in listed]
    assert json.loads(rows[0]["details"]) == {"nothing": None, "maps": listed[0]["details"]["maps"]}
    assert len(rows[0]["images"]) == 3 and rows[0]["images"][0]["note"] == "here"


def finding(name: str, severity: float, **more: Any) -> Finding:
    return Finding(finding_id=name, kind="border", title="t", sentence="s", severity=severity, n=3, **more)


def test_equals_are_ranked_by_name_and_names_are_unique() -> None:
    found = ranked([finding("b", 1), finding("c", 7), finding("a", 1)])
    assert [each.finding_id for each in found] == ["c", "a", "b"]
    with pytest.raises(ValueError, match="two findings have the id 'a'"):
        ranked([finding("a", 1), finding("a", 2)])


def test_causal_checks_are_in_table_and_list() -> None:
    check = CausalCheck(images=5, change=-0.3, control=-0.1, low=-0.25, high=-0.1, used=True)
    image = ImageRef(image_id="i", unit_id="u")
    found = [finding("a", 1, causal=check, images=(image,), low=float("nan"))]
    row = findings_table(found).to_pylist()[0]
    assert CausalCheck.model_validate_json(row["causal"]) == check and row["low"] is None
    assert row["images"] == [{**image.model_dump(), "target_class": None, "store_path": None, "store_row": None}]
    assert json.loads(findings_json(found))[0]["causal"]["used"] is True
    assert findings_table([]).schema.equals(FINDINGS) and findings_json([]) == b"[]"


def test_the_manifest_says_what_was_audited(result: AuditResult, lake: Lake) -> None:
    stored = AuditManifest.model_validate_json((Path(result.output) / "audit.json").read_text())
    assert stored == result.manifest
    assert (stored.units, stored.images, stored.classes, stored.lake_finished) == (4, 240, 4, True)
    assert (stored.method, stored.layer, stored.settings.layer) == ("grad_cam", "layer4", "layer4")
    assert stored.maps == sum(commit.maps for commit in lake.commits.values())
    assert stored.counted == 2 * len(measured(lake))
    assert stored.lake_run_id == lake.manifest.run_id and stored.regions is None
    assert {"numpy", "scipy", "camlake", "python"} <= set(stored.versions)


def test_whoever_finds_the_manifest_finds_all_of_it(result: AuditResult, tmp_path: Path) -> None:
    old = {entry.path for entry in LakeStore(result.output).list()}
    assert "audit.json" in old and "maps.zarr/groups/site/mean/zarr.json" in old

    def fail(number: int, path: str) -> None:
        if path == "findings.json":
            raise StoreError("injected")

    objects = {"groups.parquet": b"new", "findings.json": b"[]", "maps.zarr/zarr.json": b"{}"}
    with pytest.raises(StoreError):
        write(WrappedStore(result.output, before=fail), objects, result.manifest)
    assert not (Path(result.output) / "audit.json").exists()
    store = LakeStore(result.output)
    write(store, objects, result.manifest)
    left = {entry.path for entry in store.list() if not entry.path.startswith("parts/")}
    assert left - {"findings.parquet", "report.html"} == {*objects, "audit.json"}
    assert store.get("groups.parquet") == b"new"

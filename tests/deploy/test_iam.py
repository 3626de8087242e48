"""The rights that deploy/iam gives are those that a job's requests need, no more and no fewer."""

from __future__ import annotations

import inspect
import json
from collections import Counter
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import s3fs
import yaml

from benchmarks.requests import METHODS, Request, kind, place, requests_of_a_job
from pipeline.lake.store import LakeStore
from tests.deploy.versions import ROOT
from tests.s3_server import S3Store

ACTIONS = {
    "GetObject": "s3:GetObject",
    "HeadObject": "s3:GetObject",
    "PutObject": "s3:PutObject",
    "DeleteObject": "s3:DeleteObject",
    "ListObjectsV2": "s3:ListBucket",
}
POLICY = json.loads((ROOT / "deploy" / "iam" / "aws-policy.json").read_text())


def listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def needed(method: str, path: str) -> tuple[str, str, str | None]:
    """(action, resource, prefix of a listing) of a request, its objects moved to where the policy's examples are."""
    parts = urlsplit(path)
    key = parts.path.removeprefix("/").partition("/")[2]
    prefix = parse_qs(parts.query).get("prefix", [""])[0] if kind(method, path) == "ListObjectsV2" else None
    inside = key if prefix is None else prefix
    if inside.startswith("lakes/"):
        name, lake = "my-lakes", inside.replace("lakes/", "camlake/", 1)
    else:
        name, lake = "my-models" if inside.startswith("net.") else "my-data", inside
    action = ACTIONS[kind(method, path)]
    if prefix is not None:
        return action, f"arn:aws:s3:::{name}", lake
    return action, f"arn:aws:s3:::{name}/{lake}", None


def allows(statement: dict[str, Any], action: str, resource: str, prefix: str | None) -> bool:
    """Whether a statement allows a request; its only condition is that on prefixes."""
    if action not in listed(statement["Action"]):
        return False
    if not any(fnmatchcase(resource, pattern) for pattern in listed(statement["Resource"])):
        return False
    wanted = statement.get("Condition", {}).get("StringLikeIfExists", {}).get("s3:prefix")
    return wanted is None or prefix is None or fnmatchcase(prefix, wanted)


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    return requests_of_a_job(units=2, images=2, listed=True)


def test_every_request_of_a_job_is_allowed(requests: list[Request]) -> None:
    assert {phase for phase, _, _ in requests} == {"start", "worker", "units", "finish", "status", "again"}
    refused = {
        needed(method, path)
        for _, method, path in requests
        if not any(allows(statement, *needed(method, path)) for statement in POLICY["Statement"])
    }
    assert not refused


def test_requests_per_unit_are_few(requests: list[Request]) -> None:
    """What docs/scale.md reckons with: one read of the shard, and one write per object; a listing of nothing."""
    found = Counter(kind(method, path) for phase, method, path in requests if phase == "units")
    arrays, units = len(METHODS), 2
    assert found == {
        # An array is its metadata and its shard; then images, maps and the commit.
        "PutObject": units * (2 * arrays + 3),
        "GetObject": units,
        # The shard, by its plan and when it is opened; the lake's end and the unit's commit, which are not there.
        "HeadObject": units * 4,
    }
    finish = Counter((kind(method, path), place(path)) for phase, method, path in requests if phase == "finish")
    assert finish["GetObject", "lake: heatmaps/"] == units * 2 * arrays
    assert finish["GetObject", "lake: commits/"] == units
    looked_up = {where for what, where in finish if what == "HeadObject"}
    assert looked_up == {"lake: camlake.json", "lake: plan/", "lake: _SUCCESS.json"}


def test_no_right_goes_unused(requests: list[Request]) -> None:
    asked = {needed(method, path) for _, method, path in requests}
    for statement in POLICY["Statement"]:
        for action in listed(statement["Action"]):
            if action == "s3:AbortMultipartUpload":
                continue  # below
            used = [request for request in asked if request[0] == action and allows(statement, *request)]
            assert used, f"{statement['Sid']}: nothing asks for {action}"
    # Of lakes nothing is deleted but what a sweep may find; commits, manifest and plan least of all.
    (sweep,) = [each for each in POLICY["Statement"] if "s3:DeleteObject" in listed(each["Action"])]
    for name in ("commits/a.json", "camlake.json", "plan/units.parquet", "_SUCCESS.json"):
        resource = f"arn:aws:s3:::my-lakes/camlake/run-1/{name}"
        assert not allows(sweep, "s3:DeleteObject", resource, None)


def test_large_objects_go_up_in_parts_and_a_part_s_failure_takes_the_rest_away(s3_store: S3Store) -> None:
    """Why ``s3:AbortMultipartUpload`` is there: s3fs parts what is larger than two of its chunks."""
    chunk = inspect.signature(s3fs.S3FileSystem._pipe_file).parameters["chunksize"].default
    store = LakeStore(s3_store.url("lake"), s3_store.storage_options)
    asked: list[str] = []
    call = store.fs._call_s3

    async def noted(method: str, *arguments: Any, **options: Any) -> Any:
        asked.append(method)
        if method == "upload_part":
            raise OSError("the network broke")
        return await call(method, *arguments, **options)

    store.fs._call_s3 = noted
    with pytest.raises(OSError, match="the network broke"):
        store.fs.pipe_file(f"{s3_store.bucket}/lake/large", b"\0" * (2 * chunk))
    assert asked[0] == "create_multipart_upload" and "upload_part" in asked and asked[-1] == "abort_multipart_upload"


def test_the_launcher_s_head_may_start_machines_and_end_only_its_own() -> None:
    policy = json.loads((ROOT / "deploy" / "iam" / "aws-launcher-policy.json").read_text())
    cluster = yaml.safe_load((ROOT / "deploy" / "aws" / "cluster.yaml").read_text())
    by_name = {statement["Sid"]: statement for statement in policy["Statement"]}
    tags = by_name["EndItsOwnMachines"]["Condition"]["StringEquals"]
    assert tags == {"aws:ResourceTag/ray-cluster-name": cluster["cluster_name"]}
    profile = cluster["available_node_types"]["gpu"]["node_config"]["IamInstanceProfile"]["Name"]
    assert by_name["GiveWorkersTheirRole"]["Resource"].endswith(f":role/{profile}")
    assert "s3:" not in json.dumps(policy) and "ec2:*" not in json.dumps(policy)

"""The file for Ray's cluster launcher: by Ray's own schema, and by our versions and roles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import ray.autoscaler
import yaml

from jobs.config import load_job
from jobs.submit import require_reachable
from tests.deploy.versions import ROOT, project

FOLDER = ROOT / "deploy" / "aws"


def config() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((FOLDER / "cluster.yaml").read_text(encoding="utf-8"))
    return found


def test_ray_takes_it() -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    validator = jsonschema.Draft7Validator(schema)
    assert [error.message for error in validator.iter_errors(config())] == []
    assert list(validator.iter_errors(config() | {"max_worker": 1}))


def test_images_are_of_this_version() -> None:
    docker, version = config()["docker"], project()["version"]
    assert docker["image"].endswith(f"/camlake:{version}-cuda")
    assert docker["head_image"].endswith(f"/camlake:{version}-cpu")


def test_the_driver_has_a_machine_that_stays_and_workers_are_on_spot() -> None:
    found = config()
    nodes = found["available_node_types"]
    head, gpu = nodes[found["head_node_type"]], nodes["gpu"]
    assert head["resources"] == {"CPU": 0} and "InstanceMarketOptions" not in head["node_config"]
    assert gpu["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"} and gpu["min_workers"] == 0
    assert gpu["node_config"]["ImageId"] == head["node_config"]["ImageId"]
    # Only the head may start machines.
    assert head["node_config"]["IamInstanceProfile"] != gpu["node_config"]["IamInstanceProfile"]
    workers = load_job(str(FOLDER / "job.yaml")).workers
    assert workers.gpus == gpu["resources"]["GPU"] and workers.cpus <= gpu["resources"]["CPU"]
    assert workers.max == gpu["max_workers"] == found["max_workers"]
    require_reachable(load_job(str(FOLDER / "job.yaml")))


def test_all_containers_ask_for_the_token_that_all_have() -> None:
    found = config()
    assert "--env RAY_AUTH_MODE=token" in found["docker"]["run_options"]
    assert list(found["file_mounts"]) == ["/home/ray/.ray/auth_token"]
    assert "--dashboard-host=127.0.0.1" in " ".join(found["head_start_ray_commands"])

"""The RayJob manifests: against KubeRay's own schema where it is at hand, and against our code and versions always.

``CAMLAKE_KUBERAY_SCHEMAS`` names a folder with ``rayjobs.v1.json``, the OpenAPI schema of the custom resource (the
member ``schema`` of a document, or the document itself).
"""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml
from typer.core import TyperGroup

from jobs.cli import COMMANDS, build
from jobs.config import parse_job
from jobs.submit import require_reachable
from tests.deploy.versions import constraint, project

FOLDER = Path(__file__).parents[2] / "deploy" / "kuberay"
MANIFESTS = sorted(FOLDER.glob("rayjob-*.yaml"))
_SCHEMAS = "CAMLAKE_KUBERAY_SCHEMAS"


def documents(path: Path) -> dict[str, dict[str, Any]]:
    """Documents of a manifest by their kind."""
    return {document["kind"]: document for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))}


def strict(schema: Any) -> Any:
    """Return a schema that refuses what it does not name, so that a misspelt field is found."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: strict(value) for key, value in schema.items()}
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and not open_ended:
        result["additionalProperties"] = False
    return result


def pods(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Pod specs of head and worker groups by name."""
    cluster = job["spec"]["rayClusterSpec"]
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    return {name: group["template"]["spec"] for name, group in {"head": cluster["headGroupSpec"], **groups}.items()}


def test_there_are_manifests() -> None:
    assert [path.name for path in MANIFESTS] == ["rayjob-cpu.yaml", "rayjob-gpu.yaml"]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_kuberay_takes_it(path: Path) -> None:
    folder = os.environ.get(_SCHEMAS)
    if not folder or not (Path(folder) / "rayjobs.v1.json").exists():
        pytest.skip(f"{_SCHEMAS} names no folder with rayjobs.v1.json, KubeRay's schema of a RayJob")
    found = json.loads((Path(folder) / "rayjobs.v1.json").read_text())
    schema = strict(found.get("schema", found))
    schema["properties"]["metadata"] = {"type": "object"}
    validator = jsonschema.Draft202012Validator(schema)
    job = documents(path)["RayJob"]
    problems = [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in validator.iter_errors(job)]
    assert not problems
    # The check is none unless it finds a misspelling.
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"] = 1
    assert "maxReplica" in str(next(validator.iter_errors(job)))


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_versions_and_images_are_ours(path: Path) -> None:
    job = documents(path)["RayJob"]
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == constraint("ray")
    target = "cuda" if "gpu" in path.name else "cpu"
    for pod in [*pods(job).values(), job["spec"]["submitterPodTemplate"]["spec"]]:
        (container,) = pod["containers"]
        assert container["image"].endswith(f"/camlake:{project()['version']}-{target}")


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_the_entrypoint_runs_and_its_job_file_is_valid(path: Path) -> None:
    found = documents(path)
    program, command, *arguments = shlex.split(found["RayJob"]["spec"]["entrypoint"])
    assert program == "camlake" and command in COMMANDS
    parser = typer.main.get_command(build(command))
    assert isinstance(parser, TyperGroup)
    with parser.commands[command].make_context(command, list(arguments)) as context:
        job_path = context.params["job_file"]
    folder, name = job_path.rsplit("/", 1)
    job = parse_job(yaml.safe_load(found["ConfigMap"]["data"][name]), name)
    require_reachable(job)

    head = pods(found["RayJob"])["head"]
    (mount,) = head["containers"][0]["volumeMounts"]
    (volume,) = head["volumes"]
    assert mount["mountPath"] == folder and mount["name"] == volume["name"]
    assert volume["configMap"]["name"] == found["ConfigMap"]["metadata"]["name"]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_workers_fit_into_their_pods_and_the_driver_is_alone(path: Path) -> None:
    found = documents(path)
    (text,) = found["ConfigMap"]["data"].values()
    workers = parse_job(yaml.safe_load(text)).workers
    cluster = found["RayJob"]["spec"]["rayClusterSpec"]
    (group,) = cluster["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert workers.cpus <= int(limits["cpu"]) and workers.gpus == int(limits.get("nvidia.com/gpu", 0))
    each = int(int(limits["cpu"]) // workers.cpus) if not workers.gpus else 1
    assert workers.max == each * group["maxReplicas"] >= workers.min
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert "nvidia.com/gpu" not in str(cluster["headGroupSpec"])
    if group["minReplicas"] < group["maxReplicas"] and group["minReplicas"] < workers.min:
        assert cluster["enableInTreeAutoscaling"]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_prometheus_is_sent_to_the_port_of_the_metrics(path: Path) -> None:
    monitor = yaml.safe_load((FOLDER / "podmonitor.yaml").read_text())
    assert (monitor["apiVersion"], monitor["kind"]) == ("monitoring.coreos.com/v1", "PodMonitor")
    [endpoint] = monitor["spec"]["podMetricsEndpoints"]
    # The driver, which records them, is on the head.
    [head] = pods(documents(path)["RayJob"])["head"]["containers"]
    assert {port["name"]: port["containerPort"] for port in head["ports"]}[endpoint["port"]] == 8080
    [rule] = monitor["spec"]["selector"]["matchExpressions"]
    assert rule == {"key": "ray.io/node-type", "operator": "In", "values": ["head", "worker"]}


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_no_root_no_secret_and_an_end(path: Path) -> None:
    spec = documents(path)["RayJob"]["spec"]
    account = yaml.safe_load((FOLDER / "service-account.yaml").read_text())
    for pod in [*pods({"spec": spec}).values(), spec["submitterPodTemplate"]["spec"]]:
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] > 0
        assert pod["restartPolicy"] == "Never"
        for container in pod["containers"]:
            assert not container["securityContext"]["allowPrivilegeEscalation"]
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    for pod in pods({"spec": spec}).values():
        assert pod["serviceAccountName"] == account["metadata"]["name"]
        for container in pod["containers"]:
            assert [set(each) for each in container["envFrom"]] == [{"secretRef"}] and "env" not in container
    assert spec["shutdownAfterJobFinishes"] and spec["ttlSecondsAfterFinished"] > 0
    assert spec["backoffLimit"] >= 1 and spec["activeDeadlineSeconds"] > 0
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    # Each attempt writes into the same lake: no part of the command or the job changes between attempts.
    assert not re.search(r"\$|uuid|date", spec["entrypoint"])


def test_gpu_workers_may_be_on_spot_machines_and_the_driver_may_not() -> None:
    found = pods(documents(FOLDER / "rayjob-gpu.yaml")["RayJob"])
    keys = {toleration["key"] for toleration in found["gpu"]["tolerations"]}
    assert {"nvidia.com/gpu", "cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority"} <= keys
    assert "tolerations" not in found["head"]
    required = found["head"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    rules = {
        rule["key"]: rule["operator"] for term in required["nodeSelectorTerms"] for rule in term["matchExpressions"]
    }
    assert rules == {"karpenter.sh/capacity-type": "NotIn", "cloud.google.com/gke-spot": "DoesNotExist"}

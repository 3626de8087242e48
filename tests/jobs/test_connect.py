"""A command starts a Ray of its own unless a cluster is named: not whatever was left running on the machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import ray

from jobs import attribute, audit
from schemas.job import Job


def job() -> Job:
    parts: dict[str, Any] = {
        "source": {"uri": "shard.tar", "format": "webdataset"},
        "model": {"name": "torchvision:resnet18", "weights": "random"},
        "targets": {"predicted": True},
        "methods": ["grad_cam"],
        "output": {"uri": "lake"},
    }
    return Job.model_validate(parts)


@pytest.mark.parametrize(
    "connect", [lambda address: attribute.connect(job(), address), audit.connect], ids=["attribute", "audit"]
)
def test_a_ray_of_its_own(connect: Callable[[str | None], None], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def init(address: str | None = None, **options: Any) -> None:
        asked.append(address)

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 64.0, "GPU": 8.0})
    connect(None)
    # Without an address Ray joins any cluster that 'ray start' left on this machine.
    assert asked.pop() == "local"
    connect("auto")
    assert asked.pop() == "auto"
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")
    connect(None)
    assert asked.pop() == "192.0.2.1:6379"

"""What a worker makes of the job's settings when it starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.engine.worker import AttributionWorker
from pipeline.models.winograd import WinogradConv2d, available
from schemas.job import Job


@pytest.mark.parametrize("winograd", [True, False])
def test_winograd_can_be_turned_off(winograd: bool, tmp_path: Path) -> None:
    document = {
        "source": {"uri": f"{tmp_path}/*.tar", "format": "webdataset"},
        "model": {"name": "torchvision:resnet18", "weights": "random"},
        "methods": ["grad_cam"],
        "output": {"uri": str(tmp_path / "lake")},
        "compute": {"winograd": winograd},
    }
    worker = AttributionWorker(Job.model_validate(document), None, "worker", device="cpu")
    worker.start()
    found = sum(isinstance(module, WinogradConv2d) for module in worker.replica.model.modules())
    assert found == (13 if winograd and available() else 0)

"""A small dataset, network and job for the tests of the commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from jobs.cli import build
from jobs.demo.network import DigitNet
from jobs.demo.scenes import make_scenes
from jobs.demo.shards import write_shards
from jobs.demo.train import save_weights

WIDTHS = [4, 6, 8, 8]


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three shards of eight scenes each, and untrained weights."""
    folder = tmp_path_factory.mktemp("dataset")
    write_shards(make_scenes(24, split="test", seed=5), folder / "shards", shards=3)
    torch.manual_seed(3)
    save_weights(DigitNet(10, WIDTHS), folder / "net.safetensors", 96)
    return folder


@pytest.fixture
def document(dataset: Path, tmp_path: Path) -> dict[str, Any]:
    """A job on that dataset, as a mapping that tests change."""
    return {
        "source": {
            "uri": str(dataset / "shards" / "scenes-{000000..000002}.tar"),
            "format": "webdataset",
            "label": "cls",
            "attributes": ["site", {"name": "sticker", "type": "bool"}],
        },
        "model": {
            "name": "jobs.demo.network:digit_net",
            "weights": str(dataset / "net.safetensors"),
            "options": {"widths": WIDTHS},
        },
        "targets": {"label": True, "predicted": True},
        "methods": ["grad_cam"],
        "output": {"uri": str(tmp_path / "lake")},
        "compute": {"batch_size": 4, "mask_batch": 8},
    }


@pytest.fixture
def camlake() -> Callable[..., Result]:
    """Runs ``camlake ARGUMENTS`` in this process."""
    app = build()
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])

"""The same scenes in every source format give the same maps, and can be shown from each."""

from __future__ import annotations

import csv
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from typer.testing import Result

from jobs.demo.digits import CLASS_NAMES
from pipeline.lake import open_lake


def scenes(dataset: Path) -> list[tuple[str, bytes, int]]:
    """Name, encoded image and label of the scenes of the first shard."""
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(dataset / "shards" / "scenes-000000.tar") as tar:
        for member in tar.getmembers():
            key, _, suffix = member.name.partition(".")
            found.setdefault(key, {})[suffix] = tar.extractfile(member).read()  # type: ignore[union-attr]
    return [(key, parts["png"], int(parts["cls"])) for key, parts in sorted(found.items())]


def as_webdataset(folder: Path, dataset: Path) -> dict[str, Any]:
    return {"uri": str(dataset / "shards" / "scenes-000000.tar"), "format": "webdataset", "label": "cls"}


def as_compressed_webdataset(folder: Path, dataset: Path) -> dict[str, Any]:
    with tarfile.open(folder / "scenes.tar.gz", "w:gz") as tar:
        for key, data, label in scenes(dataset):
            for suffix, content in (("png", data), ("cls", str(label).encode())):
                header = tarfile.TarInfo(f"{key}.{suffix}")
                header.size = len(content)
                tar.addfile(header, io.BytesIO(content))
    return {"uri": str(folder / "scenes.tar.gz"), "format": "webdataset", "label": "cls"}


def as_parquet(folder: Path, dataset: Path) -> dict[str, Any]:
    rows = [{"image": {"bytes": data, "path": f"{key}.png"}, "label": label} for key, data, label in scenes(dataset)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "scenes.parquet", row_group_size=3)
    return {"uri": str(folder / "*.parquet"), "format": "parquet", "label": "label", "unit_images": 3}


def as_folder(folder: Path, dataset: Path) -> dict[str, Any]:
    for key, data, label in scenes(dataset):
        path = folder / "tree" / CLASS_NAMES[label] / f"{key}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return {"uri": str(folder / "tree"), "format": "folder", "unit_images": 5}


def as_list(folder: Path, dataset: Path) -> dict[str, Any]:
    with (folder / "scenes.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["uri", "class"])
        for key, data, label in scenes(dataset):
            (folder / f"{key}.png").write_bytes(data)
            writer.writerow([f"{key}.png", CLASS_NAMES[label]])
    return {"uri": str(folder / "scenes.csv"), "format": "list", "label": "class", "unit_images": 3}


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(
    "write", [as_webdataset, as_compressed_webdataset, as_parquet, as_folder, as_list], ids=lambda write: write.__name__
)
def test_every_format_gives_the_same_maps(
    write: Callable[[Path, Path], dict[str, Any]],
    document: dict[str, Any],
    dataset: Path,
    tmp_path: Path,
    camlake: Callable[..., Result],
) -> None:
    document["source"] = write(tmp_path, dataset)
    document["targets"] = {"label": True}
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump(document))
    result = camlake("attribute", job)
    assert result.exit_code == 0, result.output
    lake = open_lake(document["output"]["uri"])
    images = lake.images.to_table().to_pylist()
    assert len(images) == 8 and {row["status"] for row in images} == {"ok"}

    # Images are matched by their bytes' digest: ids differ between the formats.
    digest_of = {row["image_id"]: row["sha256"] for row in images}
    found = {(digest_of[row["image_id"]], row["target_name"]): values for row, values in lake.heatmaps()}
    expected = expected_maps(dataset, document)
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        np.testing.assert_allclose(found[key], values, rtol=2e-3, atol=2e-3 * np.abs(values).max())

    sheet = tmp_path / "sheet.png"
    shown = camlake("show", document["output"]["uri"], "--count", "2", "--cell", "64", "--output", sheet)
    assert shown.exit_code == 0, shown.output
    with Image.open(sheet) as picture:
        assert picture.height > 2 * 64


def expected_maps(dataset: Path, document: dict[str, Any]) -> dict[tuple[bytes, str], np.ndarray]:
    """The same by hand: decode with Pillow, normalise, and call the compute core."""
    import hashlib

    import torch

    from pipeline import Attributor
    from pipeline.models.replica import load_replica
    from schemas.job import Model

    replica = load_replica(Model.model_validate(document["model"]))
    encoded = scenes(dataset)
    pixels = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for _, data, _ in encoded]
    images = (torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
    result = Attributor(replica.model)(images, [label for _, _, label in encoded])
    return {
        (hashlib.sha256(data).digest(), CLASS_NAMES[label]): result["grad_cam"][number].numpy()
        for number, (_, data, label) in enumerate(encoded)
    }

"""The whole way over an S3-compatible server: shards, weights and lake in a bucket, over real HTTP."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from typer.testing import Result

from pipeline.lake import LakeStore, open_lake, verify
from tests.s3_server import S3Store


@pytest.mark.usefixtures("local_ray")
def test_shards_weights_and_lake_in_a_bucket(
    document: dict[str, Any], dataset: Path, tmp_path: Path, s3_store: S3Store, camlake: Callable[..., Result]
) -> None:
    for path in sorted((dataset / "shards").glob("*.tar")):
        s3_store.put(f"shards/{path.name}", path.read_bytes())
    s3_store.put("net.safetensors", (dataset / "net.safetensors").read_bytes())
    options = s3_store.storage_options
    document["source"] |= {"uri": s3_store.url("shards/scenes-{000000..000002}.tar"), "storage_options": options}
    document["model"] |= {"weights": s3_store.url("net.safetensors"), "storage_options": options}
    document["output"] = {"uri": s3_store.url("lake"), "storage_options": options}
    document["workers"] = {"max": 2}
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump(document))

    result = camlake("attribute", job)
    assert result.exit_code == 0, result.output
    store = LakeStore(s3_store.url("lake"), options)
    assert verify(store).ok
    manifest = store.get("camlake.json").decode()
    assert not any(str(value) in manifest for key, value in options.items() if key in ("key", "secret"))
    lake = open_lake(s3_store.url("lake"), options)
    images = lake.images.to_table().to_pylist()
    assert len(images) == 24 and {row["status"] for row in images} == {"ok"}

    # One ranged request per picture: the sheet is made from the bucket alone.
    storage = [f"--storage={key}={value!r}".replace("'", '"') for key, value in flat(options)]
    source = [option.replace("--storage", "--source-storage") for option in storage]
    sheet = tmp_path / "sheet.png"
    shown = camlake("show", s3_store.url("lake"), "--count", "2", "--cell", "64", "--output", sheet, *storage, *source)
    assert shown.exit_code == 0, shown.output
    with Image.open(sheet) as picture:
        assert picture.width > 2 * 64
    again = camlake("attribute", job)
    assert again.exit_code == 0 and "3 of 3 units are done" in again.output


def flat(options: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for key, value in options.items():
        found += flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return found

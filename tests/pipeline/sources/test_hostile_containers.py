"""Hostile shards, tables, lists and folders: good images are read, the rest is told, and nothing is written."""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import schemas.job
from pipeline.sources import Sample, open_source
from pipeline.sources import webdataset as webdataset_module
from pipeline.sources.base import UnitError
from pipeline.sources.fetch import ImageReader
from schemas.errors import InputError
from tests.hostile_containers import BESIDE, Container, containers, image, summed, tar

CONTAINERS = containers()


def read(folder: Path, name: str, item: Container) -> tuple[list[Sample], str | None]:
    """Samples of a container and the error that ended it; it lies behind a good one, as it would in life."""
    path = folder / name
    path.write_bytes(item.data)
    (folder / "images").mkdir(exist_ok=True)
    uris = [str(path)]
    if item.format == "webdataset":
        first = folder / f"0 first{''.join(path.suffixes)}"
        first.write_bytes(tar([("first.png", image(99))]))
        uris.insert(0, str(first))
    config = {"uri": uris, "format": item.format, "label": item.label}
    source = open_source(schemas.job.Source.model_validate(config))
    samples: list[Sample] = []
    try:
        units = list(source.plan())
    except InputError as error:
        assert item.at_plan, str(error)
        return samples, str(error)
    try:
        for unit in units:
            samples += source.read(unit) if unit.uri != str(path) else collected(source.read(unit), samples)
    except UnitError as error:
        assert not item.at_plan
        return samples, str(error)
    return samples, None


def collected(found: Iterator[Sample], into: list[Sample]) -> list[Sample]:
    """Put each sample into ``into`` as it comes: an error may follow."""
    into.extend(iter(lambda: next(found, None), None))  # type: ignore[arg-type]
    return []


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", CONTAINERS)
def test_a_container_gives_its_images_and_says_what_is_wrong(name: str, tmp_path: Path) -> None:
    item = CONTAINERS[name]
    for beside, data in BESIDE.items() if item.format == "list" else ():
        (tmp_path / beside).write_bytes(data)
    before = tree(tmp_path.parent)
    samples, error = read(tmp_path, name, item)
    if item.format == "webdataset":
        assert samples.pop(0).data == image(99)
    prefix = {"webdataset": f"{name.removesuffix('.tar')}/", "parquet": f"{name.removesuffix('.parquet')}/", "list": ""}
    found = {sample.image_id.removeprefix(prefix[item.format]): sample for sample in samples}
    assert len(found) == len(samples)
    assert {key: sample.data for key, sample in found.items() if sample.error is None} == item.good
    assert {key for key, sample in found.items() if sample.error is not None} == set(item.bad)
    for key, reason in item.bad.items():
        assert found[key].data is None and re.search(reason, found[key].error or "")
    assert (error is None) == (item.ends is None), error
    assert item.ends is None or re.search(item.ends, error or "")
    for text in [error, *(part for sample in samples for part in (sample.error, sample.uri, sample.image_id))]:
        (text or "").encode()  # the lake's tables are UTF-8
    assert error is None or "\n" not in error
    written = tree(tmp_path.parent) - before
    assert {path.parent for path in written} <= {tmp_path}
    for sample in samples:  # the place that the lake records holds these bytes
        if sample.data is not None and sample.byte_offset is not None and sample.byte_size is not None:
            held = Path(sample.uri).read_bytes()
            assert held[sample.byte_offset : sample.byte_offset + sample.byte_size] == sample.data


def tree(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def test_damage_to_any_header_is_told_and_nothing_is_wrong(tmp_path: Path) -> None:
    """Types, sizes and names of members are overwritten, under checksums that fit."""
    whole = tar([(f"{number}.{suffix}", image(number)) for number in range(4) for suffix in ("png", "txt")])
    headers = [place for place in range(0, len(whole), 512) if whole[place + 257 : place + 262] == b"ustar"]
    sizes = (b"\x80" + b"\x7f" * 11, b"\xff" * 12, b"77777777777\0", b"\x80" + bytes(3) + b"\x7f" * 8, b"00000000000\0")
    rng = np.random.default_rng(6)
    path = tmp_path / "s.tar"
    path.write_bytes(whole)
    source = open_source(schemas.job.Source(uri=str(path), format="webdataset"))
    unit = replace(next(source.plan()), etag=None)
    held = {image(number) for number in range(4)}
    damaged = 0
    for _ in range(400):
        data = bytearray(whole)
        place = headers[int(rng.integers(len(headers)))]
        if rng.random() < 0.5:
            data[place + 156] = int(rng.choice(list(b"0123456789LKSxgXVDMN\0A\xff")))
        if rng.random() < 0.5:
            data[place + 124 : place + 136] = sizes[int(rng.integers(len(sizes)))]
        if rng.random() < 0.2:
            data[place + int(rng.integers(100))] = int(rng.integers(256))
        path.write_bytes(summed(data))
        try:
            found = [sample.data for sample in source.read(unit)]
            assert all(each is None or each in held or not each for each in found)
        except UnitError as error:
            assert "\n" not in str(error)
            damaged += 1
    assert 100 < damaged < 400


def test_a_member_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webdataset_module, "MAX_MEMBER_BYTES", 5000)
    members = [("0.png", image(0)), ("1.png", bytes(5001)), ("2.png", image(2)), ("2.json", bytes(6000))]
    (tmp_path / "s.tar").write_bytes(tar(members))
    config = {"uri": str(tmp_path / "s.tar"), "format": "webdataset", "id": "json.id"}
    source = open_source(schemas.job.Source.model_validate(config | {"id": None}))
    first, second, third = (sample for unit in source.plan() for sample in source.read(unit))
    assert (first.data, third.data) == (image(0), image(2))  # nobody asks for the JSON
    assert second.error == "the member '1.png' has 5001 bytes, more than the limit of 5000; write it smaller"


def test_text_that_utf8_cannot_write_is_escaped(tmp_path: Path) -> None:
    record = rb'{"label": "cat\ud800", "site": "a\udfff", "more": {"k\ud801": ["\ud802", 3]}}'
    (tmp_path / "s.tar").write_bytes(tar([("0.png", image(0)), ("0.json", record)]))
    config = {
        "uri": str(tmp_path / "s.tar"),
        "format": "webdataset",
        "label": "json.label",
        "attributes": ["site", "more"],
    }
    source = open_source(schemas.job.Source.model_validate(config))
    (sample,) = (sample for unit in source.plan() for sample in source.read(unit))
    assert sample.label == r"cat\ud800"
    assert sample.attributes == {"site": r"a\udfff", "more": {r"k\ud801": [r"\ud802", 3]}}


# Folders ----------------------------------------------------------------------------------------------------------

PLAIN = ("a b", "quote'\"", "new\nline", "ü", "n" * 250, "%2e", "{x}")
FILES = [(f"{name}.png".encode(), f"{name}.png") for name in PLAIN] + [
    (b"no utf-8 \xff\xfe.png", r"no utf-8 \udcff\udcfe.png"),
    (b"class \xff/in it.png", r"class \udcff/in it.png"),
]


def test_files_of_any_name_in_a_folder(tmp_path: Path) -> None:
    root = os.fsencode(tmp_path / "root")
    for number, (raw, _) in enumerate(FILES):
        path = Path(os.fsdecode(root + b"/" + raw))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(number))
    os.mkfifo(tmp_path / "root" / "pipe.png")
    (tmp_path / "root" / "dangling.png").symlink_to("nowhere")
    (tmp_path / "root" / "folder.png").mkdir()
    source = open_source(schemas.job.Source(uri=str(tmp_path / "root"), format="folder"))
    units = list(source.plan())
    samples = {sample.image_id: sample for unit in units for sample in source.read(unit)}
    assert {name: sample.data for name, sample in samples.items()} == {
        name: image(number) for number, (_, name) in enumerate(FILES)
    }
    assert samples[r"class \udcff/in it.png"].label == r"class \udcff"
    for sample in samples.values():
        sample.uri.encode()
    for unit in units:
        "".join([unit.unit_id, *(unit.members or ())]).encode()


def test_a_file_that_is_gone_since_the_plan_is_named_as_the_plan_names_it(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/gone \xff.png"))
    path.write_bytes(image(0))
    source = open_source(schemas.job.Source(uri=str(tmp_path), format="folder"))
    (unit,) = source.plan()
    path.unlink()
    (sample,) = source.read(unit)
    assert sample.data is None and r"gone \udcff.png' does not exist" in str(sample.error)


def test_a_shard_whose_name_is_no_utf8_is_refused_at_once(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.tar")).write_bytes(tar([("0.png", image(0))]))
    source = open_source(schemas.job.Source(uri=str(tmp_path / "*.tar"), format="webdataset"))
    with pytest.raises(InputError, match=r"the name of '.*/\\udcff.tar' is not UTF-8; rename it"):
        list(source.plan())


def test_extracting_would_have_written_outside(tmp_path: Path) -> None:
    """The oracle of the test above: the names in ``places.tar`` are really such."""
    with tarfile.open(fileobj=io.BytesIO(CONTAINERS["places.tar"].data)) as archive:
        names = archive.getnames()
    assert any(name.startswith("/") for name in names) and any(".." in name.split("/") for name in names)


def test_a_row_that_names_a_pipe_or_a_device_is_that_image_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    reader = ImageReader(str(tmp_path / "list.csv"), {})
    for uri in (str(tmp_path / "pipe.jpg"), "/dev/zero", str(tmp_path)):
        sample = reader.fill(Sample("a", uri, None))
        assert sample.data is None and sample.error is not None
        assert "a folder, a pipe or a device" in sample.error

"""The whole audit: the same numbers however it is cut, and after any interruption."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.audit import parts_files
from pipeline.audit.frame import make_frame
from pipeline.audit.gather import Interrupted, gather_on_ray, interruptible
from pipeline.audit.objects import Objects
from pipeline.audit.parts_files import Work, chunks
from pipeline.audit.run import AuditResult, default_output, run_audit
from pipeline.lake import LakeStore, finalize, open_lake, verify
from schemas.audit import Settings
from schemas.errors import InputError, LakeError
from tests.pipeline.audit.lakes import Deadly, make_lake, outputs, read_parts
from tests.s3_server import S3Store

ROOT = Path(__file__).parents[3]
SETTINGS = Settings(groups=("site", "camera"), cluster="patient", bootstrap=50, sample=200)
UNITS = 12

pytestmark = pytest.mark.usefixtures("one_kind")


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("run")
    return make_lake(
        folder / "lake", units=UNITS, images=30, methods=("grad_cam", "layer_cam"), grid=(5, 7), boxes=True
    )


def audited(lake: str, output: Path, *, settings: Settings = SETTINGS, **options: Any) -> AuditResult:
    return run_audit(lake, settings, str(output), say=lambda line: None, **options)


@pytest.fixture(scope="module")
def whole(lake: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The outputs of an audit in one piece."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.audit.run.FINDINGS", {"degenerate": "tests.pipeline.audit.kinds"})
        patch.setattr("pipeline.audit.run.write_report", lambda *given: b"<!doctype html>")
        result = audited(lake, tmp_path_factory.mktemp("whole") / "out")
    found = outputs(result.output)
    assert len(read_parts(result.output)) == 1
    assert {"groups.parquet", "findings.parquet", "findings.json", "maps.zarr/mean/c/0/0/0"} <= set(found)
    return found


def assert_same(found: dict[str, bytes], expected: dict[str, bytes]) -> None:
    assert found.keys() == expected.keys()
    for path, data in expected.items():
        assert found[path] == data, path


@pytest.mark.parametrize("most_maps", [1, 150, 500])
def test_chunks_do_not_matter(lake: str, whole: dict[str, bytes], tmp_path: Path, most_maps: int) -> None:
    result = audited(lake, tmp_path / "out", most_maps=most_maps)
    parts = len(read_parts(result.output))
    assert parts == UNITS if most_maps == 1 else 1 < parts < UNITS
    assert_same(outputs(result.output), whole)


def test_the_order_of_units_does_not_matter(
    lake: str, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shuffled(*arguments: Any) -> Any:
        found = chunks(*arguments)
        return [found[i] for i in (5, 0, 3, 11, 1, 7, 2, 10, 4, 6, 9, 8)]

    monkeypatch.setattr("pipeline.audit.run.chunks", shuffled)
    result = audited(lake, tmp_path / "out", most_maps=1)
    assert_same(outputs(result.output), whole)


def test_workers_do_not_matter(lake: str, whole: dict[str, bytes], tmp_path: Path, local_ray: None) -> None:
    settings = SETTINGS.model_copy(update={"boxes": "boxes"})
    here = audited(lake, tmp_path / "here", settings=settings)
    there = audited(lake, tmp_path / "there", settings=settings, workers=2, most_maps=200)
    assert_same(outputs(there.output), outputs(here.output))
    assert outputs(here.output)["groups.parquet"] != whole["groups.parquet"]
    without = audited(lake, tmp_path / "without", workers=2, most_maps=1)
    assert_same(outputs(without.output), whole)


def test_an_audit_that_is_killed_goes_on(lake: str, whole: dict[str, bytes], tmp_path: Path) -> None:
    output = tmp_path / "out"
    # Units take a while, so that the kill comes in mid-run.
    script = (
        "import time, pipeline.audit.parts_files as parts\n"
        "from pipeline.audit.run import run_audit\n"
        "from schemas.audit import Settings\n"
        "add = parts.add_unit\n"
        "parts.add_unit = lambda *given: (time.sleep(0.1), add(*given))\n"
        f"settings = Settings.model_validate_json('''{SETTINGS.model_dump_json()}''')\n"
        f"run_audit({lake!r}, settings, {str(output)!r}, say=print, workers=0, most_maps=1)\n"
    )
    run = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(output.glob("parts/*.npz"))) < 3:
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    run.wait()
    before = {path: path.stat().st_mtime_ns for path in output.glob("parts/*.npz")}
    assert 3 <= len(before) < UNITS and not (output / "audit.json").exists()
    lines: list[str] = []
    result = run_audit(lake, SETTINGS, str(output), say=lines.append, most_maps=1)
    assert f"parts     {UNITS}, of which {len(before)} are there" in lines
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert_same(outputs(result.output), whole)


def test_a_second_call_reads_no_unit_again(
    lake: str, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    first = audited(lake, output)
    (output / "groups.parquet").write_bytes(b"spoilt")
    (output / "maps.zarr" / "old").write_bytes(b"left by an older release")
    monkeypatch.setattr(parts_files, "add_unit", None)
    # What is made of the parts may change without a new pass.
    second = audited(lake, output, settings=SETTINGS.model_copy(update={"q": 0.01, "parts": 8}), workers=None)
    assert second.manifest.settings.q == 0.01
    assert [each.n for each in second.findings] == [each.n for each in first.findings]
    third = audited(lake, output)
    assert_same(outputs(third.output), whole)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"targets": "all"},
        {"bootstrap": 51},
        {"groups": ("site",)},
        {"cluster": None},
        {"method": "layer_cam"},
        {"boxes": "boxes"},
        {"sample": 1000},
    ],
)
def test_parts_of_other_settings_are_never_mixed_in(
    lake: str, whole: dict[str, bytes], tmp_path: Path, change: dict[str, Any]
) -> None:
    lines: list[str] = []
    output = tmp_path / "out"
    other = audited(lake, output, settings=SETTINGS.model_copy(update=change))
    first = outputs(other.output)
    assert first["groups.parquet"] != whole["groups.parquet"] or change in ({"sample": 1000},)
    result = run_audit(lake, SETTINGS, str(output), say=lines.append)
    assert "parts     1, of which 0 are there, 1 of other settings or an older lake are left alone" in lines
    assert_same(outputs(result.output), whole)
    again = audited(lake, output, settings=SETTINGS.model_copy(update=change))
    assert_same(outputs(again.output), first)


def test_units_that_come_later_are_added(lake: str, whole: dict[str, bytes], tmp_path: Path) -> None:
    copy = tmp_path / "lake"
    shutil.copytree(lake, copy)
    late = copy / "commits" / f"{UNITS - 1:06d}-shard-{UNITS - 1:03d}.json"
    (copy / "_SUCCESS.json").unlink()
    commit = late.read_bytes()
    late.unlink()
    lines: list[str] = []
    output = str(tmp_path / "out")
    part = run_audit(str(copy), SETTINGS, output, say=lines.append, most_maps=1)
    assert part.manifest.units == UNITS - 1 and not part.manifest.lake_finished
    assert f"not finished: 1 of {UNITS} units are not there yet" in lines[0]
    late.write_bytes(commit)
    finalize(LakeStore(str(copy)))
    whole_lake = run_audit(str(copy), SETTINGS, output, say=lines.append, most_maps=1)
    assert f"parts     {UNITS}, of which {UNITS - 1} are there" in lines
    assert whole_lake.manifest.lake_finished
    assert part.manifest.commits_digest != whole_lake.manifest.commits_digest
    assert_same(outputs(output), whole)


# What goes wrong ------------------------------------------------------------------------------------------------------


def damaged(lake: str, folder: Path) -> tuple[str, Path, bytes]:
    """A copy of the lake in which a shard of the sixth unit is damaged: (URI, the shard, its bytes)."""
    copy = folder / "lake"
    shutil.copytree(lake, copy)
    shard = next((copy / "heatmaps" / "grad_cam").glob("*/000005-*/c/0/0/0"))
    data = shard.read_bytes()
    shard.write_bytes(data[:-3] + b"abc")
    return str(copy), shard, data


@pytest.mark.parametrize("workers", [0, 2])
def test_a_unit_that_cannot_be_read_is_named_and_the_rest_is_kept(
    lake: str, whole: dict[str, bytes], tmp_path: Path, workers: int, local_ray: None
) -> None:
    uri, shard, data = damaged(lake, tmp_path)
    output = tmp_path / "out"
    with pytest.raises(LakeError, match=r"unit '000005-shard-005': .*grad_cam.*checksum.*camlake verify"):
        audited(uri, output, workers=workers, most_maps=1)
    parts = read_parts(str(output))
    assert len(parts) == (UNITS - 1 if workers else 5) and not (output / "audit.json").exists()
    shard.write_bytes(data)
    audited(uri, output, workers=workers, most_maps=1)
    assert_same(outputs(str(output)), whole)


def test_a_bug_names_its_unit_too(lake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*given: Any) -> None:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(parts_files, "add_unit", bug)
    with pytest.raises(LakeError, match=r"unit '000000-shard-000' .*ZeroDivisionError: by nothing"):
        audited(lake, tmp_path / "out")


@pytest.mark.slow
def test_a_unit_that_kills_its_worker_is_named(lake: str, tmp_path: Path, local_ray: None) -> None:
    opened = open_lake(lake)
    frame = make_frame(opened, SETTINGS)
    output = LakeStore(str(tmp_path / "out"))
    work = Work(opened.store, output, opened.manifest, frame, Deadly("shard-005/00011"))
    found = chunks(opened, frame, Objects(), 150)
    done: list[Any] = []
    with pytest.raises(LakeError, match=r"^unit '000005-shard-005': the worker died 3 times"):
        gather_on_ray(work, found, 2, done.append)
    assert len(done) == len(found) - 1 == len(read_parts(output.uri)) > 1


def test_a_damaged_part_is_named(lake: str, whole: dict[str, bytes], tmp_path: Path) -> None:
    output = tmp_path / "out"
    audited(lake, output, most_maps=1)
    part = sorted(output.glob("parts/*.npz"))[4]
    data = bytearray(part.read_bytes())
    for spoilt in (bytes(data[: len(data) // 2]), bytes(data[:3000]) + b"\xff" * 64 + bytes(data[3064:]), b""):
        part.write_bytes(spoilt)
        with pytest.raises(LakeError, match=f"{part.name} is damaged .*delete it"):
            audited(lake, output, most_maps=1)
    part.unlink()
    audited(lake, output, most_maps=1)
    assert_same(outputs(str(output)), whole)


def test_the_audit_lies_beside_the_lake(lake: str, tmp_path: Path) -> None:
    copy = tmp_path / "lake"
    shutil.copytree(lake, copy)
    result = run_audit(str(copy), SETTINGS, say=lambda line: None)
    assert result.output == f"{copy}.audit"
    finalize(LakeStore(str(copy)))
    assert verify(LakeStore(str(copy))).ok
    for inside in (copy, copy / "audit"):
        with pytest.raises(InputError, match=r"lies in the lake; give a folder beside it, such as .*lake\.audit"):
            audited(str(copy), inside)


def test_foreign_folders_are_not_written_to(lake: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match=r"is no audit \(it holds thesis\.tex\)"):
        audited(lake, tmp_path / "out")


def test_a_lake_in_memory_is_audited(tmp_path: Path) -> None:
    uri = make_lake(f"memory://{tmp_path.name}/lake", units=2)
    result = run_audit(uri, Settings(bootstrap=50), say=lambda line: None)
    assert result.output == f"{uri}.audit" and LakeStore(result.output).exists("audit.json")


def test_a_lake_in_a_bucket_is_audited(whole: dict[str, bytes], s3_store: S3Store, local_ray: None) -> None:
    options = s3_store.storage_options
    uri = make_lake(
        s3_store.url("lakes/one"),
        units=UNITS,
        images=30,
        methods=("grad_cam", "layer_cam"),
        grid=(5, 7),
        boxes=True,
        storage_options=options,
    )
    for workers in (2, None):  # the second call finds all parts
        result = run_audit(
            uri, SETTINGS, say=lambda line: None, storage_options=options, workers=workers, most_maps=300
        )
    assert result.output == s3_store.url("lakes/one.audit")
    assert_same(outputs(result.output, options), whole)
    assert len(read_parts(result.output, options)) > 1
    assert options["secret"] not in LakeStore(result.output, options).get("audit.json").decode()
    with pytest.raises(InputError, match="is a whole bucket, and the audit cannot lie in it"):
        default_output(LakeStore(s3_store.url(), options))


def test_targets_without_maps_are_refused(tmp_path: Path) -> None:
    uri = make_lake(tmp_path / "lake", units=1, labelled=False)
    with pytest.raises(InputError, match=r"has no map of grad_cam at layer4 .* give other --targets"):
        audited(uri, tmp_path / "out", settings=Settings(targets="label"))


def test_chunks_are_bounded_and_their_names_follow_what_they_hold(lake: str) -> None:
    opened = open_lake(lake)
    frame = make_frame(opened, SETTINGS)
    found = chunks(opened, frame, Objects(), 150)
    assert [unit for chunk in found for unit in chunk.units] == sorted(opened.commits)
    assert all(chunk.maps <= 150 for chunk in found) and len({chunk.path for chunk in found}) == len(found)
    assert chunks(opened, frame, Objects(), 150) == found
    other = chunks(opened, frame, Objects(stamp=("boxes, version 2",)), 150)
    assert not {chunk.path for chunk in found} & {chunk.path for chunk in other}
    turned = {unit: opened.commits[unit] for unit in sorted(opened.commits, reverse=True)}
    opened.commits = turned
    assert chunks(opened, frame, Objects(), 150) == found


def test_many_small_units_are_cut_by_their_number(lake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_lake(lake)
    monkeypatch.setattr(parts_files, "MOST_UNITS", 5)
    found = chunks(opened, make_frame(opened, SETTINGS), Objects())
    assert [len(chunk.units) for chunk in found] == [5, 5, 2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_interrupt(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as caught, interruptible():
        os.kill(os.getpid(), number)
        time.sleep(5)
    assert caught.value.signal == number and signal.getsignal(number) == before

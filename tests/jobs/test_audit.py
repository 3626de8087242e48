"""``camlake audit``."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from pipeline.lake import Lake
from schemas.audit import AuditManifest
from schemas.errors import LakeError
from schemas.registries import FINDINGS
from tests.pipeline.audit.lakes import make_lake

Run = Callable[..., Result]
ROOT = Path(__file__).parents[2]
QUICK = ("--workers", "0", "--causal", "0", "--bootstrap", "50")


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("audit")
    return make_lake(folder / "lake", units=3, images=120, classes=3, methods=("grad_cam", "layer_cam"), boxes=True)


@pytest.fixture
def one_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the kind of finding of the tests, and few images as for detectors: these have tests of their own."""
    monkeypatch.setattr("pipeline.audit.localisation_table.IMAGES", 20)
    for name in reversed(list(FINDINGS)):  # undone in their order
        monkeypatch.delitem(FINDINGS, name)
    monkeypatch.setitem(FINDINGS, "degenerate", "tests.pipeline.audit.kinds")


@pytest.mark.usefixtures("one_kind")
def test_an_audit_says_what_it_found_and_where_it_lies(lake: str, tmp_path: Path, camlake: Run) -> None:
    output = tmp_path / "out"
    result = camlake("audit", lake, "--groups", "site,camera", "--groups", "site", "--output", output, *QUICK)
    assert result.exit_code == 0, result.output
    text = result.stdout
    assert "3 units, 360 images" in text and "grad_cam at layer4, targets: predicted" in text
    assert re.search(r"findings +3; the worst first:\n +1 name-\d has \d+ maps\.\n +2 name-\d", text)
    assert f"report    {output}/report.html" in text
    manifest = AuditManifest.model_validate_json((output / "audit.json").read_text())
    assert manifest.settings.groups == ("site", "camera")
    names = {"groups.parquet", "findings.parquet", "findings.json", "maps.zarr", "parts", "audit.json", "report.html"}
    assert {path.name for path in output.iterdir()} == names


@pytest.mark.usefixtures("one_kind")
def test_options_are_settings(lake: str, tmp_path: Path, camlake: Run) -> None:
    output = tmp_path / "out"
    options = {
        "cluster": "patient",
        "method": "layer_cam",
        "layer": "layer4",
        "targets": "all",
        "boxes": "boxes",
        "seed": 3,
        "bootstrap": 60,
        "sample": 500,
        "parts": 5,
        "q": 0.1,
        "suppressed_below": 5,
        "interval_from": 20,
        "flagged_from": 50,
        "effect_d": 0.3,
        "effect_energy": 0.1,
        "effect_ratio": 2.0,
        "confident": 0.8,
    }
    arguments = [each for name, value in options.items() for each in (f"--{name.replace('_', '-')}", str(value))]
    result = camlake("audit", lake, "--output", output, "--workers", "0", "--causal", "0", *arguments)
    assert result.exit_code == 0, result.output
    assert "boxes in the column 'boxes'" in result.stdout
    assert re.search(r"located +best by MaxBoxAccV2 over \d+ maps: \w+_cam at layer4, \d", result.stdout)
    assert "maps.zarr, localisation.parquet" in result.stdout
    assert "How well the maps find objects" in (output / "report.html").read_text()
    settings = json.loads((output / "audit.json").read_text())["settings"]
    assert {name: settings[name] for name in options} == options
    assert settings["groups"] == [] and settings["masks"] is None


@pytest.mark.usefixtures("one_kind")
def test_the_images_may_lie_in_another_store(
    lake: str, tmp_path: Path, camlake: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def report(evidence: Any, *given: Any, **more: Any) -> bytes:
        (unit, *_) = evidence.lake.commits
        with pytest.raises(LakeError):
            evidence.originals.get(evidence.lake.unit_images(unit).to_pylist()[0])
        return b""

    def image_bytes(self: Lake, image_id: str, *, unit_id: str, storage_options: Any) -> bytes:
        asked.append(storage_options)
        raise LakeError("not there")

    monkeypatch.setattr("pipeline.audit.run.write_report", report)
    monkeypatch.setattr(Lake, "image_bytes", image_bytes)
    for options in ((), ("--source-storage", "anon=true", "--source-storage", "client_kwargs.region_name=eu-1")):
        result = camlake("audit", lake, "--output", tmp_path / "out", *QUICK, *options)
        assert result.exit_code == 0, result.output
    assert asked == [None, {"anon": True, "client_kwargs": {"region_name": "eu-1"}}]


@pytest.mark.usefixtures("one_kind")
def test_conditions_fail_a_build_and_name_the_class(lake: str, tmp_path: Path, camlake: Run) -> None:
    output = tmp_path / "out"
    common = ("audit", lake, "--output", output, *QUICK, "--boxes", "boxes")
    passed = camlake(*common, "--fail-on", "border_enrichment>2", "--fail-on", "shortcut>0")
    assert passed.exit_code == 2 and "'shortcut'" in passed.stderr  # the registry holds one kind here
    passed = camlake(*common, "--fail-on", "border_enrichment>2", "--fail-on", "findings>9")
    assert passed.exit_code == 0 and "fails" not in passed.stdout
    failed = camlake(*common, "--fail-on", "gini.q95>0.1", "--fail-on", "energy<0", "--fail-on", "findings>2")
    assert failed.exit_code == 1, failed.output
    assert re.search(r"fails +gini\.q95>0\.1: class 'name-\d' has 0\.\d+ \(\d+ maps\), class", failed.stdout)
    assert "fails     findings>2: there are 3" in failed.stdout and "energy<0" not in failed.stdout
    unsure = camlake(*common, "--flagged-from", "100000", "--fail-on", "gini>0.1")
    assert unsure.exit_code == 0 and "no class has 100000 such maps, so nothing was judged" in unsure.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--fail-on", "border_enrichmnt>1"], "did you mean border_enrichment"),
        (["--fail-on", "energy<0.5"], "'energy' needs to know where objects are; give --boxes or --masks"),
        (["--groups", "sitee"], "did you mean site"),
        (["--cluster", "patients"], "did you mean patient"),
        (["--method", "gradcam"], "did you mean grad_cam"),
        (["--boxes", "boxs"], "did you mean boxes"),
        (["--boxes", "boxes", "--masks", "masks"], "give one of them"),
        (["--boxes", "s3://me:secret@bucket/boxes.json"], "credentials in it; give them in the environment"),
        (["--bootstrap", "10"], "--bootstrap: input should be greater than or equal to 50 (it is 10)"),
        (["--q", "2"], "--q: input should be less than 1"),
        (["--storage", "anon"], "--storage"),
    ],
)
def test_wrong_input_is_one_sentence(lake: str, tmp_path: Path, camlake: Run, arguments: list[str], words: str) -> None:
    output = tmp_path / "out"
    result = camlake("audit", lake, "--output", output, "--workers", "0", *arguments)
    assert result.exit_code == 2, result.output
    assert words in result.stderr and result.stderr.count("\n") == 1
    assert not output.exists()


def test_a_folder_that_is_no_lake_is_refused(tmp_path: Path, camlake: Run) -> None:
    result = camlake("audit", tmp_path, "--workers", "0")
    assert result.exit_code == 2 and "holds no lake" in result.stderr


def test_a_damaged_lake_could_not_be_finished(tmp_path: Path, camlake: Run) -> None:
    uri = make_lake(tmp_path / "lake", units=2)
    next((tmp_path / "lake" / "maps").glob("000001*")).write_bytes(b"nothing")
    result = camlake("audit", uri, *QUICK)
    assert result.exit_code == 3
    assert re.search(r"^error: unit '000001-shard-001': .*run 'camlake verify'$", result.stderr.strip())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_audit_that_is_interrupted_says_so(tmp_path: Path, number: signal.Signals, code: int) -> None:
    uri = make_lake(tmp_path / "lake", units=2)
    script = (
        "import time, pipeline.audit.parts_files as parts\n"
        "parts.add_unit = lambda *given: (print('began', flush=True), time.sleep(60))\n"
        "from jobs.cli import build\n"
        f"build('audit')(['audit', {uri!r}, '--workers', '0'])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    while "began" not in run.stdout.readline():
        assert run.poll() is None
    time.sleep(0.1)
    run.send_signal(number)
    assert run.wait(30) == code
    assert "the same command does the rest" in run.stdout.read()
    run.stdout.close()


@pytest.mark.usefixtures("one_kind")
def test_an_audit_runs_on_ray(lake: str, tmp_path: Path, camlake: Run, local_ray: None) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    assert camlake("audit", lake, "--output", here, *QUICK).exit_code == 0
    result = camlake("audit", lake, "--output", there, "--causal", "0", "--bootstrap", "50")
    assert result.exit_code == 0, result.output
    for name in ("groups.parquet", "findings.json"):
        assert (here / name).read_bytes() == (there / name).read_bytes()


def test_all_kinds_of_findings_run_on_one_lake(lake: str, tmp_path: Path, camlake: Run) -> None:
    output = tmp_path / "out"
    result = camlake(
        "audit", lake, "--groups", "site", "--boxes", "boxes", "--targets", "all", "--output", output, *QUICK
    )
    assert result.exit_code == 0, result.output
    found: list[dict[str, Any]] = json.loads((output / "findings.json").read_text())
    # The first map of every unit is zero, the second is not finite.
    assert "degenerate" in {each["kind"] for each in found}
    assert all(each["kind"] in FINDINGS for each in found)
    assert (output / "report.html").read_bytes().startswith(b"<!")

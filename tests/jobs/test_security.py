"""Job files run no code but the factory that they name, and nothing is written but the output."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from jobs.config import load_job, parse_job
from jobs.options import storage_options
from pipeline.lake import LakeStore
from pipeline.models.factory import build, parse_name
from pipeline.sources import open_source
from schemas.errors import InputError
from tests.jobs.outside import bare_environment, left_behind, written

Run = Callable[..., Result]

TAGS = [
    "!!python/object/apply:pathlib.Path.touch [{mark}]",
    "!!python/object/new:pathlib.Path [{mark}]",
    "!!python/object:tests.signed_images.SignedImages {{}}",
    "!!python/name:os.system",
    "!!python/module:os",
    "!!python/tuple [1]",
    "!hunter2",
]


@pytest.mark.parametrize("tag", TAGS)
def test_tags_of_yaml_run_nothing(document: dict[str, Any], tmp_path: Path, tag: str) -> None:
    mark = tmp_path / "executed"
    value = tag.format(mark=mark)
    path = written(document, tmp_path)
    path.write_text(path.read_text() + f"max_failed: {value}\n")
    with pytest.raises(
        InputError, match=r"line \d+, column \d+: (the|a) tag .* is not allowed; quote the value"
    ) as told:
        load_job(str(path))
    assert "hunter2" not in str(told.value), "a password that begins with '!' looks like a tag"
    with pytest.raises(InputError, match=r"--set max_failed=\.\.\.: the value is not valid YAML"):
        load_job(str(written(document, tmp_path)), [f"max_failed={value}"])
    with pytest.raises(InputError, match=r"--storage x=\.\.\.: the value is not valid YAML"):
        storage_options([f"x={value}"])
    assert not mark.exists()


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module ``trap_of_tests`` on the path that leaves a file when it is imported; returns that file."""
    folder = tmp_path / "modules"
    folder.mkdir()
    mark = tmp_path / "imported"
    everything = "METHOD = SOURCE = SINK = factory = None"
    (folder / "trap_of_tests.py").write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n{everything}\n")
    monkeypatch.syspath_prepend(str(folder))
    return mark


NAMES = ["trap_of_tests", "trap_of_tests:factory", "modules.trap_of_tests", "../modules/trap_of_tests.py"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "place",
    [
        ("source", "format"),
        ("source", "uri"),
        ("source", "label"),
        ("source", "attributes", 0),
        ("model", "weights"),
        ("model", "class_names"),
        ("model", "layers", 0),
        ("model", "activation"),
        ("methods", 0),
        ("methods", 0, "name"),
        ("targets",),
        ("output", "uri"),
        ("output", "dtype"),
    ],
    ids=str,
)
def test_no_other_name_is_imported(
    document: dict[str, Any], tmp_path: Path, trap: Path, camlake: Run, place: tuple[Any, ...], name: str
) -> None:
    document["methods"] = [{"name": "grad_cam"}]
    document["model"]["layers"] = ["stage4"]
    node: Any = document
    for part in place[:-1]:
        node = node[part]
    node[place[-1]] = name
    job = written(document, tmp_path)
    # An output of any name is a folder that plan does not write.
    assert camlake("plan", job, "--sample", "1").exit_code == (0 if place == ("output", "uri") else 2)
    assert not trap.exists()


@pytest.mark.parametrize("protocol", ["trap_of_tests", "trap-of-tests"])
def test_a_protocol_imports_nothing(document: dict[str, Any], trap: Path, protocol: str) -> None:
    document["source"]["uri"] = f"{protocol}://bucket/a.tar"
    with pytest.raises(InputError, match="unknown protocol"):
        list(open_source(parse_job(document).source).plan())
    with pytest.raises(InputError, match="no URI that fsspec opens"):
        LakeStore(f"{protocol}://bucket/lake")
    assert not trap.exists()


def test_the_factory_that_is_named_is_imported(trap: Path) -> None:
    """The test above would see an import."""
    with pytest.raises(InputError):
        build(parse_name("trap_of_tests:factory"), {})
    assert trap.exists()


def test_a_worker_writes_nothing_but_the_lake(document: dict[str, Any], tmp_path: Path) -> None:
    document["methods"] = ["grad_cam", "score_cam"]
    document["source"]["uri"] = document["source"]["uri"].replace("{000000..000002}", "000000")
    code = "import sys, yaml; from tests.jobs.inline import run_inline; run_inline(yaml.safe_load(open(sys.argv[1])))"
    bare = tmp_path / "bare"
    environ = bare_environment(bare)
    run = subprocess.run(
        [sys.executable, "-c", code, written(document, tmp_path)],
        capture_output=True,
        cwd=bare / "cwd",
        env=environ,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr.decode()
    assert left_behind(bare) == []
    assert (tmp_path / "lake" / "_SUCCESS.json").exists()

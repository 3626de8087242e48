"""docs/audit.md names every kind of finding, measure, option, default and column, and what it shows runs."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any, get_args

import duckdb
import pyarrow as pa
import pytest
import typer.models

from jobs.audit import audit
from jobs.compare import compare
from jobs.export import export_command
from pipeline.audit import outputs, wsol
from pipeline.audit.compare_tables import COMPARISON, PRIORS
from pipeline.audit.exports import DEFAULT_IMAGES
from pipeline.audit.expressions import STATISTICS
from pipeline.audit.faithful_table import FAITHFUL_MEASURES
from pipeline.audit.maps_zarr import FOLDER
from pipeline.audit.run import run_audit
from schemas import audit as contracts
from schemas.audit import FAITHFULNESS, FINDINGS, GROUPS, MEASURES, Settings
from schemas.registries import EXPORTS
from schemas.registries import FINDINGS as KINDS
from tests.pipeline.audit.lakes import make_lake

TEXT = (Path(__file__).parents[3] / "docs" / "audit.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(python|sql)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
TABLES = {
    "groups.parquet": GROUPS,
    "findings.parquet": FINDINGS,
    "localisation.parquet": next(room.LOCALISATION for room in (contracts, wsol) if hasattr(room, "LOCALISATION")),
    "faithfulness.parquet": FAITHFULNESS,
    "comparison.parquet": COMPARISON,
    "priors.parquet": PRIORS,
}


def section(heading: str, level: int) -> str:
    """The text below a heading, up to the next of the same level or above."""
    found = re.search(rf"^{'#' * level} {re.escape(heading)}\n(.*?)(?=^#{{1,{level}}} |\Z)", TEXT, re.M | re.S)
    assert found is not None, heading
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of a table's rows, without its head."""
    lines = [line.strip().strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines[2:]]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", cell)


def options(command: Any) -> dict[str, Any]:
    """The options of a command and their defaults."""
    found: dict[str, Any] = {}
    for name, parameter in inspect.signature(command, eval_str=True).parameters.items():
        (info,) = [each for each in get_args(parameter.annotation) if isinstance(each, typer.models.ParameterInfo)]
        if isinstance(info, typer.models.OptionInfo):
            given = [each for each in info.param_decls or () if each.startswith("--")]
            found[given[0] if given else f"--{name.replace('_', '-')}"] = parameter.default
    return found


def test_every_kind_of_finding_has_a_section_with_an_example() -> None:
    text = section("Findings", 2)
    assert re.findall(r"^### `(\w+)`$", text, re.M) == list(KINDS)
    for part in re.split(r"^### .*$", text, flags=re.M)[1:]:
        assert part.strip().startswith('*"') and "Weight 0." in part


def test_every_measure_is_there_with_its_range() -> None:
    table, of_methods = (rows(part) for part in section("Measures", 2).split("Of **methods**"))
    assert [names(row[0]) for row in table] == [[measure.name] for measure in MEASURES]
    for row, measure in zip(table, MEASURES, strict=True):
        low, high = (float(end) for end in re.split(r" to | or ", row[2]))
        assert (low, high) == (measure.low, pytest.approx(measure.high, abs=0.005))
    told = [(names(row[0])[0], row[2] or None) for row in of_methods]
    assert told == [(measure.name, measure.better) for measure in FAITHFUL_MEASURES]


def test_every_option_is_there_with_its_default() -> None:
    table = {row[0].strip("`"): row[1] for row in rows(section("Options", 2))}
    defaults = options(audit)
    assert set(table) == set(defaults)
    numbers = {name: value for name, value in defaults.items() if isinstance(value, int | float)}
    assert {name: float(table[name]) for name in numbers} == numbers
    assert {f"--{name.replace('_', '-')}" for name in Settings.model_fields} <= set(table)
    assert all(table[name] for name in table)


def test_the_other_commands_options_are_there() -> None:
    known = set(options(audit)) | set(re.findall(r"--[a-z-]+", section("Comparing two lakes", 2)))
    assert set(options(compare)) <= known
    told = section("Exports", 2)
    assert set(options(export_command)) == set(re.findall(r"`(--[a-z-]+)`", told))
    assert f"`--images` ({DEFAULT_IMAGES})" in told
    assert set(re.findall(r"--to (\w+)", told)) == set(EXPORTS)


def test_every_statistic_of_a_condition_is_there() -> None:
    assert set(STATISTICS) <= set(names(section("In CI", 2)))


@pytest.mark.parametrize("name", TABLES)
def test_every_column_is_there(name: str) -> None:
    told = [column for row in rows(section(f"`{name}`", 3)) for column in names(row[0])]
    schema: pa.Schema = TABLES[name]
    assert sorted(told) == sorted(schema.names)
    nested = [field.name for field in FINDINGS.field("images").type.value_type]
    if name == "findings.parquet":
        assert names(next(row[1] for row in rows(section(f"`{name}`", 3)) if row[0] == "`images`")) == nested


def test_every_object_that_an_audit_writes_is_there() -> None:
    told = {names(row[0])[0] for row in rows(section("What comes out", 2).split("### ")[0])}
    written = {
        outputs.MANIFEST,
        outputs.GROUPS_TABLE,
        outputs.FINDINGS_TABLE,
        outputs.FINDINGS_LIST,
        outputs.FAITHFULNESS_TABLE,
        outputs.REPORT,
        FOLDER,
        "localisation.parquet",
        "parts/",
    }
    assert told == written


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An audit in ``lake.audit``."""
    path = tmp_path_factory.mktemp("docs")
    lake = make_lake(path / "lake", units=2, images=80, classes=3, boxes=True)
    settings = Settings(groups=("site",), boxes="boxes", parts=3, bootstrap=50)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.audit.run.write_report", lambda *given, **more: b"")
        found = run_audit(lake, settings, str(path / "lake.audit"), say=lambda line: None)
    assert found.findings
    return path


@pytest.mark.parametrize("number", range(len(BLOCKS)), ids=[f"{i}-{kind}" for i, (kind, _) in enumerate(BLOCKS)])
def test_block_runs(number: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    kind, code = BLOCKS[number]
    if kind == "python":
        space: dict[str, Any] = {"__name__": "docs"}
        exec(compile(code, f"audit.md, block {number}", "exec"), space)
        assert len(space["sure"]) == 3 and space["parts"].shape == (3, 14, 14)
        assert space["site"]["difference"].shape == (3, 3, 14, 14)
        return
    with duckdb.connect() as connection:
        assert connection.execute(code).fetchall()

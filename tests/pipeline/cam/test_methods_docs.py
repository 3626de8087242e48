"""docs/methods.md names every method, convention and parameter as the code has them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from pipeline.cam.plan import as_spec
from pipeline.cam.score_cam import CONVENTIONS
from schemas.methods import MethodSpec, ScoreCAMSpec, SmoothGradCAMppSpec
from schemas.registries import METHODS, implementation

TEXT = (Path(__file__).parents[3] / "docs" / "methods.md").read_text()
BLOCKS = re.findall(r"^```yaml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def rows(first: str) -> list[list[str]]:
    """The cells of the table lines whose first cell is `` `first` ``, perhaps with more behind it."""
    lines = [line for line in TEXT.splitlines() if re.match(rf"\| `{first}`[ |]", line)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_its_row_with_its_file_and_sign(name: str) -> None:
    row = next(row for row in rows(name) if len(row) == 5 and row[2].endswith(".py`"))
    assert METHODS[name].endswith(f".{row[2].strip('`').removesuffix('.py')}")
    assert row[4] == ("yes" if implementation(METHODS, "method", name).METHOD.signed else "no")


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_every_convention_has_its_switches(convention: str) -> None:
    row = next(row for row in rows(convention) if len(row) == 5 and not row[2].endswith(".py`"))
    switches = CONVENTIONS[convention]
    assert row[1] == switches.score
    assert row[2].startswith(switches.weight)
    assert row[3].startswith(switches.normalise)
    assert row[4] == str(switches.align_corners).lower()


def test_defaults_are_the_schema_s() -> None:
    for name in ("samples", "noise_level", "numerator"):
        default = SmoothGradCAMppSpec.model_fields[name].default
        assert rows(name)[0][1].strip("`") == str(default)
    assert f"The default is `{ScoreCAMSpec.model_fields['convention'].default}`" in TEXT


def test_the_job_file_s_part_is_valid() -> None:
    methods = [method for block in BLOCKS for method in yaml.safe_load(block)["methods"]]
    specs = [as_spec(method) for method in methods]
    assert len(specs) >= 5
    assert all(isinstance(spec, MethodSpec) for spec in specs)
    assert len({spec.key for spec in specs}) == len(specs)

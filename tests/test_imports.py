"""Imports point one way: jobs -> pipeline -> schemas, and downwards inside the pipeline."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: What each room may import of ours, besides itself.
MAY = {
    "schemas": set(),
    "pipeline.cam": {"schemas"},
    "pipeline.sources": {"schemas"},
    "pipeline.models": {"schemas", "pipeline.cam", "pipeline.sources"},
    "pipeline.lake": {"schemas", "pipeline.sources"},
    "pipeline.attributor": {"schemas", "pipeline.cam", "pipeline.models"},
    "pipeline.engine": {
        "schemas",
        "pipeline.attributor",
        "pipeline.cam",
        "pipeline.lake",
        "pipeline.models",
        "pipeline.sources",
    },
    "pipeline.audit": {
        "schemas",
        "pipeline.attributor",
        "pipeline.cam",
        "pipeline.engine",
        "pipeline.lake",
        "pipeline.models",
        "pipeline.sources",
    },
    "pipeline.pseudolabels": {
        "schemas",
        "pipeline.attributor",
        "pipeline.audit",
        "pipeline.cam",
        "pipeline.engine",
        "pipeline.lake",
        "pipeline.models",
        "pipeline.sources",
    },
    "pipeline": {"pipeline.attributor", "pipeline.lake"},
    "jobs": {"schemas", "pipeline"},
}


def room_of(module: str) -> str | None:
    found = [room for room in MAY if module == room or module.startswith(f"{room}.")]
    return max(found, key=len) if found else None


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files() -> list[Path]:
    return [path for room in ("schemas", "pipeline", "jobs") for path in sorted((ROOT / room).rglob("*.py"))]


def test_there_is_something_to_check() -> None:
    assert len(files()) > 40


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downwards(path: Path) -> None:
    parts = path.relative_to(ROOT).with_suffix("").parts
    room = room_of(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    assert room is not None
    for module in imports(path):
        other = room_of(module)
        if other is None or other == room:
            continue
        allowed = MAY[room]
        assert other in allowed or ("pipeline" in allowed and other.startswith("pipeline")), f"{path} imports {module}"


def loaded(code: str, *modules: str) -> list[str]:
    names = repr(modules)
    script = f"import sys\n{code}\nprint([name for name in {names} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT, timeout=120
    )
    result: list[str] = ast.literal_eval(done.stdout.strip().splitlines()[-1])
    return result


@pytest.mark.parametrize(
    ("code", "modules"),
    [
        ("import pipeline.lake", ("torch", "ray")),
        ("import pipeline", ("torch", "ray", "zarr")),
        ("from pipeline import Attributor", ("ray",)),
        ("import pipeline.models.replica", ("ray",)),
        ("import jobs.status, jobs.verify, jobs.show", ("torch", "ray")),
    ],
)
def test_light_rooms_stay_light(code: str, modules: tuple[str, ...]) -> None:
    assert loaded(code, *modules) == []

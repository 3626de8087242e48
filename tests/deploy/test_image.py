"""The Dockerfile, as far as it can be checked without building it."""

from __future__ import annotations

import re
import shlex
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.deploy.versions import ROOT, constraint, project

TEXT = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")


def instructions() -> list[tuple[str, str]]:
    """(instruction, rest) in order, with continued lines joined."""
    lines = "\n".join(line for line in TEXT.splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", lines)
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in joined.splitlines() if line.strip()]


def stages() -> dict[str, list[tuple[str, str]]]:
    """Instructions of each stage by its name."""
    found: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for instruction, rest in instructions():
        if instruction == "FROM":
            name = rest.rsplit(" AS ", 1)[1]
            found[name] = []
        if name:
            found[name].append((instruction, rest))
    return found


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a file out of the build; the last rule that fits counts."""
    result = False
    for rule in (ROOT / ".dockerignore").read_text().splitlines():
        if not rule or rule.startswith("#"):
            continue
        pattern = rule.removeprefix("!")
        parts = Path(path).parts
        anywhere = pattern.startswith("**/") and any(fnmatch(part, pattern[3:]) for part in parts)
        if anywhere or any(fnmatch("/".join(parts[: count + 1]), pattern) for count in range(len(parts))):
            result = not rule.startswith("!")
    return result


def test_both_targets_run_as_a_user_and_hold_the_same_but_for_torch() -> None:
    found = stages()
    assert {"cpu", "cuda"} <= set(found)
    for target in ("cpu", "cuda"):
        users = [rest for instruction, rest in found[target] if instruction == "USER"]
        assert users == ["1000"] and found[target][-1][0] == "CMD"
        assert ("COPY", f"--from=build-{target} /usr/local /usr/local") in found[target]
    cpu, cuda = ([step for step in found[f"build-{target}"] if step[0] != "FROM"] for target in ("cpu", "cuda"))
    assert [step for step in cpu if step not in cuda] == [cpu[0], cpu[1]] and "CPU_INDEX" in cpu[0][1]
    assert [step for step in cuda if step not in cpu] == []


def test_versions_come_from_the_constraints() -> None:
    for instruction, rest in instructions():
        for command in re.findall(r"pip install [^&]*", rest) if instruction == "RUN" else []:
            pinned = "--constraint constraints.txt" in command or "--no-deps" in command
            assert pinned and "==" not in command.replace("$(grep -E '^(torch|torchvision)==' constraints.txt)", "")
    assert constraint("torch") and constraint("torchvision")
    extras = re.findall(r"^ARG EXTRAS=(\S+)$", TEXT, re.MULTILINE)[0].split(",")
    assert set(extras) <= set(project()["optional-dependencies"]) and "cluster" in extras


def test_the_lines_that_list_the_dependencies_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (step,) = {rest for instruction, rest in stages()["build-cuda"] if instruction == "RUN" and "tomllib" in rest}
    program = shlex.split(step.split(" > requirements.txt")[0])[2].replace("${EXTRAS}", "s3,cluster")
    listed: list[str] = []
    exec(program, {"print": listed.append})
    names = {re.split(r"[\[<>=]", line)[0] for line in listed[0].splitlines()}
    assert {"torch", "ray", "s3fs", "zarr"} <= names and "gcsfs" not in names


def test_the_image_names_are_of_this_version() -> None:
    for target in ("cpu", "cuda"):
        assert f"--target {target} " in TEXT and f"camlake:{project()['version']}-{target}" in TEXT


def test_what_is_copied_is_there_and_nothing_else_can_be() -> None:
    copied = [
        source
        for instruction, rest in instructions()
        if instruction == "COPY" and "--from" not in rest
        for source in rest.split()[:-1]
    ]
    assert {"constraints.txt", "pyproject.toml", "jobs", "pipeline", "schemas"} <= set(copied)
    assert all((ROOT / source).exists() and not ignored(source) for source in copied)
    assert not any(instruction == "ADD" for instruction, _ in instructions())
    for path in (".env", ".git/config", "demo-output/lake/camlake.json", "tests/conftest.py", "jobs/.aws/credentials"):
        assert ignored(path), path
    assert not ignored("jobs/attribute.py") and ignored("jobs/__pycache__/attribute.pyc")


def test_no_secret_is_taken_in() -> None:
    assert not re.search(r"(?i)secret|password|credential|token|api_?key", TEXT)

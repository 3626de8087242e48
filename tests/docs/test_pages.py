"""The pages tell the truth: commands parse, targets and job files exist, the reference is that of the schema."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
import typer
import yaml
from typer.core import TyperGroup

from jobs.cli import COMMANDS, build
from jobs.config import LABELS_SECTION, parse_job, parse_label_job
from schemas import reference
from tests.docs.blocks import PAGES, ROOT, blocks, commands

#: `camlake` commands of pages that are written ahead of their code may stand here; none do.
BY_NAME = [pytest.param(page, id=page.relative_to(ROOT).as_posix()) for page in PAGES]


def console(page: Path) -> list[list[str]]:
    return [words for block in blocks(page) if block.language == "console" for words in commands(block.text)]


def test_there_is_something_to_check() -> None:
    assert len(PAGES) >= 12
    assert sum(len(console(page)) for page in PAGES) > 40


@pytest.mark.parametrize("page", BY_NAME)
def test_camlake_commands_take_the_options_that_are_shown(page: Path) -> None:
    for program, *arguments in console(page):
        if program != "camlake":
            continue
        name, *rest = arguments
        assert name in COMMANDS, f"camlake {name}"
        group = typer.main.get_command(build(name))
        assert isinstance(group, TyperGroup)
        try:
            group.commands[name].make_context(name, rest).close()
        except click.ClickException as error:
            pytest.fail(f"camlake {' '.join(arguments)}: {error.format_message()}")


@pytest.mark.parametrize("page", BY_NAME)
def test_modules_and_targets_that_are_run_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for words in console(page):
        if words[0] == "make" and len(words) > 1:
            assert f"\n{words[1]}:" in makefile, words
        modules = [words[place + 1] for place, word in enumerate(words[:-1]) if word == "-m" and "python" in words[0]]
        for module in modules:
            path = ROOT / module.replace(".", "/")
            assert path.with_suffix(".py").exists() or (path / "__main__.py").exists() or module == "venv", module


@pytest.mark.parametrize("page", BY_NAME)
def test_job_files_are_valid(page: Path) -> None:
    for block in blocks(page):
        if block.language == "yaml" and re.search(r"^source:", block.text, re.MULTILINE):
            document = yaml.safe_load(block.text)
            # The page on extending runs its own job, on a project with the extensions.
            if page.name != "extending.md":
                (parse_label_job if LABELS_SECTION in document else parse_job)(document, page.name)


def test_files_that_are_named_exist() -> None:
    for page in PAGES:
        folder = ROOT / "deploy" if page.parent.name == "deploy" else ROOT
        text = page.read_text(encoding="utf-8")
        named = re.findall(r"`((?:schemas|pipeline|jobs|tests|deploy|benchmarks)/[\w/.-]+\.\w+)`", text)
        named += re.findall(r"`((?:kuberay|aws|slurm|iam)/[\w/.-]+\.\w+)`", text)
        new = {block.file for block in blocks(page) if block.file}
        missing = [name for name in named if not ((folder / name).exists() or (ROOT / name).exists() or name in new)]
        assert not missing, page.name


def test_the_reference_of_the_job_file_is_that_of_its_schema() -> None:
    assert reference.main(["--check"]) == 0
    text = reference.PAGE.read_text(encoding="utf-8")
    anchors = {reference.anchor(heading.strip("`")) for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]*)\)", text)) <= anchors
    for field in ("workers", "stall_seconds", "expected_correlation", "storage_options"):
        assert f"| `{field}` |" in text

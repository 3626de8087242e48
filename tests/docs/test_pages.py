"""The pages tell the truth: commands parse, targets and job files exist, the reference is that of the schema."""

from __future__ import annotations

import argparse
import importlib
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
#: The test that runs a page's blocks, and their languages; those of quick-start.md are all but its installation.
RUN = {
    "docs/quick-start.md": ("tests/docs/test_examples.py", {"sql", "python"}),
    "docs/extending.md": ("tests/docs/test_examples.py", {"python", "diff"}),
    "docs/lake-format.md": ("tests/pipeline/lake/test_format_docs.py", {"python", "sql"}),
    "docs/audit.md": ("tests/pipeline/audit/test_audit_docs.py", {"python", "sql"}),
    "README.md": ("tests/jobs/test_readme.py", {"python", "sql"}),
}
SHORTEST = {
    "source": {"uri": "shards/*.tar", "format": "webdataset"},
    "model": {"name": "torchvision:resnet50", "weights": "weights.safetensors"},
    "methods": ["grad_cam"],
    "output": {"uri": "lake"},
}
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
        # The page on extending runs its own job, on a project with the extensions.
        if block.language == "yaml" and page.name != "extending.md":
            document = yaml.safe_load(block.text)
            if "source" not in document:  # a section: with the rest of the shortest job it is a whole one
                document = SHORTEST | document
            (parse_label_job if LABELS_SECTION in document else parse_job)(document, page.name)


@pytest.mark.parametrize("page", BY_NAME)
def test_what_a_page_shows_is_run_by_a_test_or_the_page_says_that_it_is_not(page: Path) -> None:
    found = {block.language for block in blocks(page)} - {"text"}
    name = page.relative_to(ROOT).as_posix()
    test, languages = RUN.get(name, ("", set()))
    if test:
        assert page.name in (ROOT / test).read_text(encoding="utf-8"), test
    left = found - languages - {"yaml"}  # which is validated here, all of it
    if left and name != "README.md":  # where "On your own data" needs data of one's own
        said = " ".join(page.read_text(encoding="utf-8").split())
        assert "not run by the tests" in said, (
            f"{left}: run it in a test and note it in RUN, or say on the page why not"
        )


class Parsed(Exception):
    """The options are good."""


@pytest.mark.parametrize("page", BY_NAME)
def test_benchmarks_take_the_options_that_are_shown(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parse = argparse.ArgumentParser.parse_args

    def parse_only(self: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
        parse(self, arguments)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    for words in console(page):
        if words[:2] == ["python", "-m"] and words[2].startswith("benchmarks."):
            with pytest.raises(Parsed):
                importlib.import_module(words[2]).main(words[3:])


def test_ray_takes_the_commands_that_are_shown() -> None:
    scripts = pytest.importorskip("ray.scripts.scripts")
    checked = 0
    for page in PAGES:
        for program, *words in console(page):
            command = scripts.cli
            if program != "ray":
                continue
            while isinstance(command, click.Group):
                name, *words = words
                command = command.commands[name]
            command.make_context(name, words).close()
            checked += 1
    assert checked >= 4


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

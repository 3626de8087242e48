"""How commands end: the exit codes, and errors without tracebacks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer

from schemas.errors import CamlakeError, InputError

EXIT_DONE = 0
EXIT_FAILURES = 1
EXIT_INPUT = 2
EXIT_UNFINISHED = 3


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn our errors into one line on stderr and an exit code; leave everything else to be a traceback."""
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(EXIT_INPUT) from None
    except CamlakeError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(EXIT_UNFINISHED) from None


def main_of(command: Callable[..., Any]) -> None:
    """Run a command as a module of its own: ``python -m jobs.NAME``."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    app()

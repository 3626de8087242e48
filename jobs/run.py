"""How commands end: the exit codes, and errors without tracebacks; and how they write."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer

from pipeline.engine.log import Format, Line, is_json, tell, written_as
from schemas.errors import CamlakeError, InputError

EXIT_DONE = 0
EXIT_FAILURES = 1
EXIT_INPUT = 2
EXIT_UNFINISHED = 3


@contextmanager
def plain_errors(log_format: Format = "text") -> Iterator[None]:
    """Turn our errors into one line on stderr and an exit code; leave everything else to be a traceback.

    As JSON a traceback is an object too, and the last line says the exit code.
    """
    with written_as(log_format):
        try:
            with _exit_codes():
                yield
        except typer.Exit as leaving:
            _say_exit(leaving.exit_code)
            raise
        except Exception:
            if not is_json():
                raise
            logging.getLogger(__name__).exception("the command failed", extra={"event": "crash"})
            _say_exit(EXIT_FAILURES)  # as Python ends where nothing catches
            raise typer.Exit(EXIT_FAILURES) from None
        else:
            _say_exit(EXIT_DONE)


@contextmanager
def _exit_codes() -> Iterator[None]:
    try:
        yield
    except InputError as error:
        _say_error(error, EXIT_INPUT)
        raise typer.Exit(EXIT_INPUT) from None
    except CamlakeError as error:
        _say_error(error, EXIT_UNFINISHED)
        raise typer.Exit(EXIT_UNFINISHED) from None


def _say_error(error: CamlakeError, code: int) -> None:
    tell(Line(f"error: {error}", "error", logging.ERROR, exit_code=code), sys.stderr)


def _say_exit(code: int) -> None:
    if is_json():
        tell(Line(f"exit code {code}", "exit", exit_code=code))


def main_of(command: Callable[..., Any]) -> None:
    """Run a command as a module of its own: ``python -m jobs.NAME``."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    app()

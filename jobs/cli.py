"""The ``camlake`` command. A new command is one new file plus one line here."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import typer

#: Command name -> (module, function). Modules are imported when their command runs, so that `status` needs no torch.
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("jobs.demo.command", "demo"),
    "plan": ("jobs.plan", "plan"),
    "attribute": ("jobs.attribute", "attribute"),
    "pseudo-labels": ("jobs.pseudo_labels", "pseudo_labels"),
    "status": ("jobs.status", "status"),
    "verify": ("jobs.verify", "verify"),
    "show": ("jobs.show", "show"),
    "audit": ("jobs.audit", "audit"),
    "compare": ("jobs.compare", "compare"),
    "export": ("jobs.export", "export_command"),
    "export-labels": ("jobs.export_labels", "export_labels"),
    "evaluate-labels": ("jobs.evaluate_labels", "evaluate_labels"),
    "tune-labels": ("jobs.tune_labels", "tune_labels"),
    "submit": ("jobs.submit", "submit"),
    "schema": ("jobs.schema", "schema"),
}


def build(only: str | None = None) -> typer.Typer:
    """Return the application with all commands, or with ``only`` one of them."""
    app = typer.Typer(
        name="camlake",
        help="Class-activation maps for a whole dataset, as a lake you can query.",
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    app.callback()(lambda: None)
    for name, (module, function) in COMMANDS.items():
        if only is None or name == only:
            app.command(name)(getattr(importlib.import_module(module), function))
    return app


def main() -> None:
    """Run ``camlake COMMAND ...``."""
    # As with `python -m`, so that a job file can name a factory in a module beside it.
    sys.path.insert(0, str(Path.cwd()))
    asked = sys.argv[1] if len(sys.argv) > 1 else ""
    build(asked if asked in COMMANDS else None)()


if __name__ == "__main__":
    main()

"""Modules of the optional extra ``audit``, imported when they are needed: Ray workers have no use for them."""

from __future__ import annotations

import importlib
from types import ModuleType

from schemas.errors import InputError


def extra(module: str) -> ModuleType:
    """Return a module of scipy or scikit-learn.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"the audit's findings need {module.partition('.')[0]}; install it: pip install 'camlake[audit]'"
        ) from error

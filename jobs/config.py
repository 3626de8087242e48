"""Reads job files: YAML, overrides from the command line, and errors in one sentence each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import yaml
from pydantic import ValidationError

from schemas.errors import InputError
from schemas.job import Job
from schemas.label_job import LabelJob

AnyJob = TypeVar("AnyJob", bound=Job)

#: The section of the job file that makes it one of pseudo-labels.
LABELS_SECTION = "pseudo_labels"

# Tags of the methods' union stand in pydantic's locations but not in the file.
_TAGS = {"plain", "smooth_grad_cam_pp", "score_cam"}


def load_job(uri: str, overrides: list[str] | None = None) -> Job:
    """Read the attribution job at ``uri`` (any fsspec URI), apply ``path=value`` overrides and validate.

    Raises:
        InputError: the file cannot be read, is no YAML, or a field is wrong; names the file, the field and the remedy.
    """
    return parse_job(load_document(uri, overrides), uri)


def load_label_job(uri: str, overrides: list[str] | None = None) -> LabelJob:
    """Read a pseudo-label job, as :func:`load_job` reads an attribution job."""
    return parse_label_job(load_document(uri, overrides), uri)


def load_any_job(uri: str, overrides: list[str] | None = None) -> Job:
    """Read a job of either kind: with a section ``pseudo_labels`` one of labels, else one of attribution."""
    document = load_document(uri, overrides)
    return parse_label_job(document, uri) if LABELS_SECTION in document else parse_job(document, uri)


def load_document(uri: str | None, overrides: list[str] | None = None) -> dict[str, Any]:
    """Read a job file without validating it; without a URI an empty one, to which the overrides are applied.

    Raises:
        InputError: as :func:`load_job`, of what can be told before.
    """
    document = {} if uri is None else _read(uri)
    for override in overrides or []:
        _override(document, override)
    return document


def _read(uri: str) -> dict[str, Any]:
    try:
        with fsspec.open(uri, "rt", encoding="utf-8") as file:
            document = yaml.safe_load(file)
    except FileNotFoundError:
        raise InputError(f"job file '{uri}' does not exist; check the path") from None
    except (OSError, ImportError, ValueError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise InputError(f"job file '{uri}' is not UTF-8 text; a job file is YAML") from None
        raise InputError(f"job file '{uri}' cannot be read: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InputError(f"job file '{uri}'{where}: {_problem(error)}; mend the YAML there") from None
    if not isinstance(document, dict):
        raise InputError(f"job file '{uri}' holds no mapping at its top; it must have source, model, methods, output")
    return document


def parse_job(document: dict[str, Any], name: str = "job") -> Job:
    """Validate an attribution job given as a mapping; ``name`` stands in the messages."""
    if LABELS_SECTION in document:
        raise InputError(
            f"job file '{name}': {LABELS_SECTION} is a section of 'camlake pseudo-labels', which makes labels of maps; "
            "run that command, or take the section out"
        )
    return _validated(document, name, Job)


def parse_label_job(document: dict[str, Any], name: str = "job") -> LabelJob:
    """Validate a pseudo-label job given as a mapping."""
    return _validated(document, name, LabelJob)


def _validated(document: dict[str, Any], name: str, kind: type[AnyJob]) -> AnyJob:
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        lines = [_sentence(problem) for problem in error.errors()]
        raise InputError(f"job file '{name}': {'; '.join(lines)}") from None


def _sentence(problem: Any) -> str:
    path = ".".join(str(part) for part in problem["loc"] if part not in _TAGS)
    if problem["type"] == "missing":
        return f"{path} is missing; add it"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{path}: {message}" if path else message
    given = problem.get("input")
    # What stands under a wrong name, or among the options of a store, may be a secret.
    hidden = problem["type"] == "extra_forbidden" or "storage_options" in problem["loc"]
    plain = isinstance(given, str | int | float | bool) or given is None
    shown = f" (it is {given!r})" if plain and not hidden else ""
    return f"{path}: {message[0].lower()}{message[1:]}{shown}"


def _problem(error: yaml.YAMLError) -> str:
    """What is wrong, in words; of a value only what cannot be a secret that lacks its quotes."""
    problem = str(getattr(error, "problem", None) or "not valid YAML")
    if isinstance(error, yaml.constructor.ConstructorError) and "tag" in problem:
        tag = re.search(r"tag:yaml\.org,2002:(python/[a-z_]+)", problem)
        what = f"the tag '!!{tag[1]}', which makes YAML run code," if tag else "a tag (a value that begins with '!')"
        return f"{what} is not allowed; quote the value, or remove it"
    if isinstance(error, yaml.composer.ComposerError) and "alias" in problem:
        return "an alias (a value that begins with '*') refers to nothing; quote the value"
    return problem


def _override(document: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path.strip():
        raise InputError("--set: an override lacks its path or its '='; write it as path=value: targets.top_k=3")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"--set {path}=...: the value is not valid YAML; quote it") from None
    node: Any = document
    parts = path.strip().split(".")
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        here = ".".join(parts[: depth + 1])
        if isinstance(node, list):
            if not part.isdigit() or int(part) >= len(node):
                raise InputError(f"--set {path}=...: '{here}' names no entry of a list of {len(node)}; count from 0")
            key: Any = int(part)
        elif isinstance(node, dict):
            key = part
        else:
            raise InputError(f"--set {path}=...: '{'.'.join(parts[:depth])}' is a single value; it has no '{part}'")
        if last:
            node[key] = value
            return
        following = node[key] if isinstance(node, list) else node.get(key)
        if isinstance(following, str) and (isinstance(node, list) or here == "targets"):
            # The short forms: `targets: label` and a method by its name alone.
            following = {"name": following} if isinstance(node, list) else {following: True}
        node[key] = {} if following is None else following
        node = node[key]


def absolute(job: AnyJob) -> AnyJob:
    """Return the job with local paths made absolute: workers may run in other folders."""
    source = job.source.model_copy(update={"uri": [absolute_uri(uri) for uri in job.source.uris]})
    output = job.output.model_copy(update={"uri": absolute_uri(job.output.uri)})
    changes: dict[str, Any] = {}
    if job.model.weights is not None and Path(job.model.weights).is_file():
        changes["weights"] = absolute_uri(job.model.weights)
    if isinstance(job.model.class_names, str):
        changes["class_names"] = absolute_uri(job.model.class_names)
    return job.model_copy(update={"source": source, "output": output, "model": job.model.model_copy(update=changes)})


def absolute_uri(uri: str) -> str:
    """Return a local path as an absolute one, and any other URI as it is."""
    if "://" in uri or "::" in uri:
        return uri
    return str(Path(uri).expanduser().absolute())

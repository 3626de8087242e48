"""Writes the reference of the job file, ``docs/job-file.md``, from its JSON Schema.

python -m schemas.reference [--check]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from schemas.export import FOLDER

PAGE = Path(__file__).parents[1] / "docs" / "job-file.md"

_INTRODUCTION = """\
# The job file

<!-- Made by `make schemas` from the job file's JSON Schema; what is written here by hand is lost. -->

One YAML file says what is explained, with which model and methods, and where the lake goes. It is checked before
anything starts: unknown keys, wrong types and impossible combinations are refused with the field, the reason and the
remedy. Any field can be set on the command line, `--set targets.top_k=3`, where numbers count the entries of a list
(`--set methods.0.layers=[layer3]`). `camlake schema` prints the schema that this page is made from; editors complete
and check YAML with it.

What the lake's content depends on (source, model, targets, methods, `output.dtype`, `compute.seed`) is what makes a job
this job: with a change there, the lake of an earlier run is refused. Workers, batch sizes, the URI of the output and
storage options may change between runs.
"""

#: Sections in the order in which a job file is written, with the path of each part.
_SECTIONS = {
    "Source": "source",
    "Attribute": "source.attributes[]",
    "Model": "model",
    "Preprocess": "model.preprocess",
    "Targets": "targets",
    "PlainMethodSpec": "methods[]",
    "SmoothGradCAMppSpec": "methods[], name: smooth_grad_cam_pp",
    "ScoreCAMSpec": "methods[], name: score_cam",
    "Output": "output",
    "Workers": "workers",
    "Compute": "compute",
}


def page(schema: dict[str, Any]) -> str:
    """Return the page of a job file's schema."""
    lines = [_INTRODUCTION, "## The whole", "", *_table(schema, schema["$defs"]), ""]
    missing = set(schema["$defs"]) - set(_SECTIONS)
    if missing:
        raise ValueError(f"the schema has parts without a place on the page: {', '.join(sorted(missing))}")
    for name, path in _SECTIONS.items():
        part = schema["$defs"][name]
        lines += [f"## `{path}`", "", part.get("description", ""), "", *_table(part, schema["$defs"]), ""]
    return "\n".join(lines).rstrip() + "\n"


def _table(part: dict[str, Any], parts: dict[str, Any]) -> Iterator[str]:
    yield "| field | type | default | meaning |"
    yield "|---|---|---|---|"
    required = set(part.get("required", ()))
    # What must be given first; otherwise the order is the schema's, which is that of the alphabet.
    for name, field in sorted(part["properties"].items(), key=lambda item: (item[0] not in required, item[0])):
        if name in required:
            default = "**required**"
        elif "default" in field:
            default = f"`{json.dumps(field['default'])}`"
        else:
            default = ""
        cells = [f"`{name}`", _type(field), default, _meaning(name, field, parts)]
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _type(field: dict[str, Any]) -> str:
    """Return a field's type in words, with the bounds and values that are allowed."""
    if "$ref" in field:
        return _linked(field["$ref"])
    if "const" in field:
        return f"`{json.dumps(field['const'])}`"
    for union in ("anyOf", "oneOf"):
        if union in field:
            return " or ".join(dict.fromkeys(_type(each) for each in field[union] if each.get("type") != "null"))
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    kind = field.get("type")
    if kind == "array":
        if "prefixItems" in field:
            return f"list of {len(field['prefixItems'])}: {_type(field['prefixItems'][0])}"
        return f"list of {_type(field['items'])}"
    if kind == "object":
        values = field.get("additionalProperties")
        return f"mapping to {_type(values)}" if isinstance(values, dict) else "mapping"
    names = {"string": "text", "integer": "integer", "number": "number", "boolean": "true or false"}
    bounds = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    limits = [f"{word} {field[key]:g}" for key, word in bounds.items() if key in field]
    return ", ".join([names.get(str(kind), "anything"), *limits])


def _linked(reference: str) -> str:
    name = reference.rpartition("/")[2]
    path = _SECTIONS[name]
    return f"[{path}](#{anchor(path)})"


def anchor(heading: str) -> str:
    """Return the anchor of a heading, as GitHub and the site make it."""
    kept = "".join(letter for letter in heading.lower() if letter.isalnum() or letter in " -_")
    return kept.replace(" ", "-")


def _meaning(name: str, field: dict[str, Any], parts: dict[str, Any]) -> str:
    """Return a field's description, or that of the part it refers to."""
    text = field.get("description")
    if text is None and name == "methods":
        text = "What is computed: names, or mappings with parameters; see [methods](methods.md)."
    for each in (field, *field.get("anyOf", ())):
        if text is None and "$ref" in each:
            text = parts[each["$ref"].rpartition("/")[2]].get("description")
    return str(text or "").replace("*", "\\*")


def main(arguments: list[str]) -> int:
    """Write the page, or with ``--check`` only say whether it has drifted (exit code 1)."""
    text = page(json.loads((FOLDER / "job.schema.json").read_text(encoding="utf-8")))
    if "--check" in arguments:
        if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text:
            return 0
        print("docs/job-file.md is not what the schema says; run: make schemas")
        return 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

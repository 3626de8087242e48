"""What differs between the run that a lake holds and the run that wants to go on with it."""

from __future__ import annotations

import json
from itertools import zip_longest
from typing import Any

from pipeline.lake.documents import flatten
from pipeline.lake.plan import rows
from schemas.documents import Manifest

_ABSENT = object()


def differences(old: Manifest, new: Manifest, old_plan: bytes, new_plan: bytes) -> list[str]:
    """Return the differences that change what a lake holds, each as "field: was X, is Y"; none if it may go on.

    Compared are the job without what does not change results (workers, scheduling, credentials, the lake's own
    place), the inputs, the model with its weights, the methods and the attributes.
    """
    found: list[str] = []
    if old.job_digest != new.job_digest:
        changed = _diff(_identity(old.job), _identity(new.job))
        found += changed or [_changed("job_digest", old.job_digest, new.job_digest)]
    if old.inputs_digest != new.inputs_digest:
        found.append(_plan_difference(old_plan, new_plan, old.units, new.units))
    if old.model != new.model:
        found += _diff(old.model.model_dump(mode="json"), new.model.model_dump(mode="json"), "model (as loaded)")
    if old.methods != new.methods:
        found += _diff(
            [method.model_dump(mode="json") for method in old.methods],
            [method.model_dump(mode="json") for method in new.methods],
            "methods (as resolved)",
        )
    if old.attributes != new.attributes:
        found += _diff(old.attributes, new.attributes, "attributes")
    return found


def _identity(job: dict[str, Any]) -> dict[str, Any]:
    """The part of a resolved job that :meth:`schemas.job.Job.digest` covers, for any release's job document."""
    kept = {name: value for name, value in job.items() if name not in ("workers", "max_failed", "version", "compute")}
    for part in ("source", "model", "output"):
        if isinstance(kept.get(part), dict):
            kept[part] = {
                k: v for k, v in kept[part].items() if k != "storage_options" and (part, k) != ("output", "uri")
            }
    if isinstance(job.get("compute"), dict):
        kept["compute"] = {"seed": job["compute"].get("seed")}
    return kept


def _diff(old: Any, new: Any, prefix: str = "") -> list[str]:
    before, after = dict(flatten(old)), dict(flatten(new))
    found = []
    for path in [*before, *(path for path in after if path not in before)]:
        was, now = before.get(path, _ABSENT), after.get(path, _ABSENT)
        if was != now:
            joint = "" if not prefix or path.startswith("[") else "."
            found.append(_changed(f"{prefix}{joint}{path}", was, now))
    return found


def _changed(path: str, was: Any, now: Any) -> str:
    return f"{path} was {_show(was)} and is {_show(now)}"


def _show(value: Any) -> str:
    if value is _ABSENT:
        return "absent"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _plan_difference(old: bytes, new: bytes, old_units: int, new_units: int) -> str:
    for was, now in zip_longest(rows(old, "the lake's plan"), rows(new, "the new plan")):
        if was != now:
            if was is None or now is None:
                unit = (was or now)["unit_id"]
                return f"the inputs were {old_units} units and are {new_units} (unit {unit} is the first that differs)"
            changed = _diff(was, now)
            return f"the inputs differ from unit {was['unit_id']} on: {'; '.join(changed[:3])}"
    return f"inputs_digest differs though the {old_units} units look the same"

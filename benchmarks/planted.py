"""How often the audit finds a shortcut that was planted, and how often one that was not.

    python -m benchmarks.planted FOLDER [--seeds 20] [--prevalence 0.2 0.1 0.05 0.02 0.01 0] [--json FILE]

For each seed and prevalence a network of the demo is trained on scenes of which that share of the eights carries a
sticker in a corner (all of them at one site), held-out scenes with the same stickers are explained with Grad-CAM, and
their lake is audited. *Found first*: the audit's first finding is about the digit eight and a corner. *Flagged*: some
shortcut is among the findings, whichever; at prevalence 0 it is a false one. *Confirmed*: the causal check says that
the model uses the first finding's place.

The network of prevalence 0 also explains scenes that do carry stickers: there the sticker is seen with the eight, and
not used. *Harmless*: the causal check of the sticker's corner does not say that it is used.

Results are kept in FOLDER as they come (rows.jsonl), so that the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from benchmarks.inputs import positive, say
from jobs.demo.network import DigitNet, digit_net
from jobs.demo.scenes import SceneSpec, make_scenes
from jobs.demo.shards import write_shards
from jobs.demo.train import Course, default_courses, save_weights, train
from pipeline.audit.causal import check_findings
from pipeline.audit.findings.base import Evidence, image_refs
from pipeline.audit.frame import make_frame
from pipeline.audit.run import run_audit
from pipeline.audit.state import State
from pipeline.audit.unit import add_unit
from pipeline.lake import open_lake
from schemas.audit import GRID, Finding, Settings

_CORNER = 4  # cells of the canonical grid that a sticker in the corner reaches
_LEVELS = (0.2, 0.1, 0.05, 0.02, 0.01, 0.0)
#: Prevalence of the stickers that the network of prevalence 0 is shown.
_HARMLESS = 0.2


def spec_of(prevalence: float) -> SceneSpec:
    """Return the scenes' specification."""
    return SceneSpec(prevalence=prevalence)


def network(folder: Path, seed: int, prevalence: float) -> Path:
    """Return the weights of the network of a seed and a prevalence, trained where they are not there yet.

    The course on close-ups, which shows no stickers, is the same for all prevalences of a seed.
    """
    path = folder / f"net-{seed}-{prevalence:g}.safetensors"
    if path.is_file():
        return path
    spec = spec_of(prevalence)
    close_ups, scenes = default_courses(spec)
    first = folder / f"close-ups-{seed}.safetensors"
    held_out = make_scenes(200, split="test", seed=seed + 5000, spec=spec_of(_HARMLESS))
    if not first.is_file():
        _save(train(held_out, spec_of(_HARMLESS), seed=seed, courses=[close_ups]).model, first)
    model = _trained_on(first, scenes, seed)
    save_weights(model, path, spec.size)
    return path


def _save(model: DigitNet, path: Path) -> None:
    save_file({name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}, path)


def _trained_on(first: Path, course: Course, seed: int) -> DigitNet:
    from jobs.demo.evaluate import to_tensors
    from jobs.demo.train import fit

    model = digit_net()
    model.load_state_dict(load_file(first))
    model = model.to(memory_format=torch.channels_last)
    scenes = make_scenes(course.scenes, split="train", seed=1000 + seed, spec=course.spec)
    fit(model, *to_tensors(scenes), epochs=course.epochs, learning_rate=course.learning_rate, seed=seed)
    return model.to(memory_format=torch.contiguous_format)


def lake_of(folder: Path, weights: Path, seed: int, prevalence: float, count: int) -> str:
    """Explain ``count`` held-out scenes and return the lake's URI."""
    from tests.jobs.inline import run_inline

    shutil.rmtree(folder, ignore_errors=True)
    scenes = make_scenes(count, split="test", seed=seed + 9000, spec=spec_of(prevalence))
    write_shards(scenes, folder / "shards", shards=4)
    run_inline(
        {
            "source": {
                "uri": str(folder / "shards" / "scenes-*.tar"),
                "format": "webdataset",
                "label": "cls",
                "attributes": ["site", {"name": "sticker", "type": "bool"}],
            },
            "model": {
                "name": "jobs.demo.network:digit_net",
                "weights": str(weights),
                "activation": "sigmoid",
            },
            "targets": {"label": True, "threshold": 0.5},
            "methods": ["grad_cam"],
            "output": {"uri": str(folder / "lake")},
            "compute": {"batch_size": 32},
        }
    )
    return str(folder / "lake")


def at_a_corner(finding: Finding) -> bool:
    """Say whether a finding's place is at a corner."""
    if finding.measure == "corner_enrichment":
        return True
    zone = finding.details.get("zone")
    if zone is None:
        return False
    y, x = np.argwhere(np.asarray(zone, np.bool_)).mean(0)
    return all(each < _CORNER or each > GRID - 1 - _CORNER for each in (y, x))


def planted(folder: Path, seed: int, prevalence: float, count: int) -> dict[str, Any]:
    """Train, explain, audit, and say what came out."""
    weights = network(folder, seed, prevalence)
    home = folder / f"work-{seed}-{prevalence:g}"
    lake = lake_of(home, weights, seed, prevalence, count)
    settings = Settings(groups=("site",))
    result = run_audit(lake, settings, str(home / "audit"), say=lambda line: None, workers=0, causal=32)
    first = result.findings[0] if result.findings else None
    spec = spec_of(prevalence)
    row = {
        "work": "planted",
        "seed": seed,
        "prevalence": prevalence,
        "found_first": first is not None and first.target_class == spec.sticker_class and at_a_corner(first),
        "flagged": any(finding.kind == "shortcut" for finding in result.findings),
        "confirmed": first is not None and first.causal is not None and first.causal.used,
        "false_confirmed": any(
            finding.kind == "shortcut" and finding.causal is not None and finding.causal.used
            for finding in result.findings
        ),
        "findings": [
            {
                "kind": finding.kind,
                "class": finding.target_class,
                "attribute": finding.attribute,
                "value": finding.value,
                "measure": finding.measure,
                "severity": round(finding.severity, 1),
                "used": None if finding.causal is None else finding.causal.used,
            }
            for finding in result.findings[:5]
        ],
    }
    shutil.rmtree(home)
    return row


def harmless(folder: Path, seed: int, count: int) -> dict[str, Any]:
    """Check the sticker's corner with a network that never saw a sticker."""
    weights = network(folder, seed, 0.0)
    home = folder / f"work-{seed}-harmless"
    lake = open_lake(lake_of(home, weights, seed, _HARMLESS, count))
    frame = make_frame(lake, Settings(groups=("sticker",)))
    state = State(frame)
    for unit_id in lake.commits:
        add_unit(state, lake, unit_id, None)
    sample = state.sample.table
    chosen = [
        sticker == "True" and target == spec_of(_HARMLESS).sticker_class
        for sticker, target in zip(sample["group:sticker"].to_pylist(), sample["target_class"].to_pylist(), strict=True)
    ]
    images = image_refs(sample.filter(chosen), most=64)
    zone = np.zeros((GRID, GRID), np.int64)
    zone[:_CORNER] = zone[-_CORNER:] = 1
    zone[:, _CORNER:-_CORNER] = 0
    finding = Finding(
        finding_id="sticker",
        kind="shortcut",
        title="The sticker",
        sentence="It is there.",
        severity=50.0,
        target_class=spec_of(_HARMLESS).sticker_class,
        n=len(images),
        images=images,
        details={"zone": zone.tolist()},
    )
    (checked,) = check_findings(Evidence(frame, state, lake, sample), [finding], images=64, say=say)
    shutil.rmtree(home)
    return {
        "work": "harmless",
        "seed": seed,
        "images": len(images),
        "harmless": checked.causal is not None and not checked.causal.used,
        "change": None if checked.causal is None else checked.causal.change,
    }


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """Return a table for people."""
    lines = ["prevalence   seeds   found first   flagged   confirmed   a used shortcut flagged"]
    for level in sorted({row["prevalence"] for row in rows if row["work"] == "planted"}, reverse=True):
        mine = [row for row in rows if row["work"] == "planted" and row["prevalence"] == level]

        def share(name: str, mine: list[dict[str, Any]] = mine) -> str:
            return f"{sum(bool(row[name]) for row in mine) / len(mine):.0%}"

        lines.append(
            f"{level:10.0%} {len(mine):7d} {share('found_first'):>13} {share('flagged'):>9} {share('confirmed'):>11} "
            f"{share('false_confirmed'):>25}"
        )
    unused = [row for row in rows if row["work"] == "harmless"]
    if unused:
        right = sum(row["harmless"] for row in unused)
        lines.append(f"\na sticker that is there and not used: said to be unused in {right} of {len(unused)} runs")
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Run what is left and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.planted",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="for networks and results")
    parser.add_argument("--seeds", type=positive, default=20, help="networks per prevalence (default: %(default)s)")
    parser.add_argument("--prevalence", type=float, nargs="+", default=list(_LEVELS), help="shares of the eights")
    parser.add_argument("--scenes", type=positive, default=2400, help="held-out scenes per lake (default: %(default)s)")
    parser.add_argument("--threads", type=positive, help="torch threads (default: torch's own)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rows there")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    options.folder.mkdir(parents=True, exist_ok=True)
    kept = options.folder / "rows.jsonl"
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.is_file() else []
    done = {(row["work"], row["seed"], row.get("prevalence")) for row in rows}
    for seed in range(options.seeds):
        todo: list[tuple[tuple[str, int, float | None], Callable[[], dict[str, Any]]]] = [
            (("planted", seed, level), partial(planted, options.folder, seed, level, options.scenes))
            for level in options.prevalence
        ]
        if 0.0 in options.prevalence:
            todo.append((("harmless", seed, None), partial(harmless, options.folder, seed, options.scenes)))
        for key, make in todo:
            if key in done:
                continue
            began = time.perf_counter()
            row = make()
            rows.append(row)
            with kept.open("a") as file:
                file.write(json.dumps(row) + "\n")
            say(f"{key}: {time.perf_counter() - began:.0f} s")
    print("\n".join(summary(rows)))
    if options.json:
        options.json.write_text(json.dumps({"rows": rows}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""How often the audit finds a shortcut that was planted, and how often one that was not.

    python -m benchmarks.planted FOLDER [--seeds 20] [--prevalence 0.2 0.1 0.05 0.02 0.01 0] [--json FILE]

For each seed and prevalence the demo's network is trained on scenes of which that share of the eights carries a sticker
in a corner (all of them at one of three sites), held-out scenes with as many stickers are explained with Grad-CAM, and
their lake is audited, with the causal check.

- *Found first*: the audit's first finding is about the digit eight, its place is at the corners, and at least half of
  its images carry the sticker.
- *Another class there*: some finding of the kind ``shortcut`` is about another digit, its place is at the corners and
  at least half of its images carry the sticker: what stands in for an eight may stand in for a nine, too.
- *False flag*: some finding of that kind is neither; at prevalence 0, any such finding.
- *Said to be used*: the causal check of a finding about the sticker says that the model uses it.
- *Sticker's effect*: mean rise of the probability of 'eight' where the sticker is pasted into scenes without an eight.

The harmless cue is a grey patch of the same shape (the demo's control) at the places of the stickers of prevalence 0.2,
in the held-out scenes only; the network is that of prevalence 0, which it hardly moves (its effect is measured like the
sticker's). The coloured sticker would not do: it looks a little like an eight to networks that never saw it. *Flagged*:
some finding is about the patch. *Said to be used*, *said not to be used*: by the causal check of the very patches,
made whether or not anything was found. *Separated*: made of the seed's stickers at prevalence 0.05, the same check says
that they are used, and of the patches it does not. *Change where the spot is on the patch*: what painting over the very
patch does in those images behind a finding whose spot lies on it; a patch that does nothing on average may do
something there.

What comes is kept in FOLDER (networks, lakes, ``rows.jsonl``), so that the same command goes on where it stopped;
``--again`` audits kept lakes anew.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.inputs import positive, say
from benchmarks.sticker_networks import PLAIN, Sizes, explained, held_out, loaded, network, plain_scenes
from benchmarks.sticker_verdict import verdict, verdict_where_shown
from jobs.demo.drawing import CONTROL_COLOURS
from jobs.demo.evaluate import measure_accuracy, measure_sticker
from jobs.demo.scenes import Scene
from pipeline.audit.run import run_audit
from pipeline.lake import open_lake
from schemas.audit import GRID, Finding, Settings

_LEVELS = (0.2, 0.1, 0.05, 0.02, 0.01, 0.0)
_CORNER = 4  # cells of the canonical grid, from either edge, that a sticker in a corner reaches
#: Prevalence of the harmless patches.
_HARMLESS = 0.2
#: Prevalence at which the sticker is held against the harmless patch.
_SEPARATED = 0.05
_CAUSAL = 32
#: Held-out scenes on which accuracy and the sticker's effect are measured.
_MEASURED = 400

Row = dict[str, Any]


def at_corners(finding: Finding) -> bool:
    """Say whether most of a finding's place is at corners of the view."""
    if finding.measure == "corner_enrichment":
        return True
    zone = finding.details.get("zone")
    if zone is None:
        return False
    rows, columns = np.nonzero(np.asarray(zone, np.bool_))
    near = [np.minimum(each, GRID - 1 - each) < _CORNER for each in (rows, columns)]
    return bool((near[0] & near[1]).mean() >= 0.5)


def at_the_sticker(finding: Finding, marked: set[str]) -> bool:
    """Say whether a finding of any class is at the sticker: its place, and at least half of its images."""
    return (
        at_corners(finding)
        and bool(finding.images)
        and bool(np.mean([image.image_id in marked for image in finding.images]) >= 0.5)
    )


def about_the_sticker(finding: Finding, marked: set[str]) -> bool:
    """Say whether a finding is about the sticker: at it, and of its class."""
    return finding.target_class == PLAIN.sticker_class and at_the_sticker(finding, marked)


def marked_images(lake: str) -> set[str]:
    """Return the ids of the images that carry a sticker."""
    table = open_lake(lake).images.to_table(columns=["image_id", "sticker"])
    pairs = zip(table["image_id"].to_pylist(), table["sticker"].to_pylist(), strict=True)
    return {image for image, sticker in pairs if sticker}


def audited(lake: str, home: Path, scenes: Callable[[], Sequence[Scene]]) -> Row:
    """Audit a lake of scenes and return what came of it."""
    output = str(home.absolute() / "audit")
    result = run_audit(lake, Settings(groups=("site",)), output, say=lambda line: None, workers=0, causal=_CAUSAL)
    marked = marked_images(lake)
    right = [about_the_sticker(each, marked) for each in result.findings]
    shortcuts = [each for each in result.findings if each.kind == "shortcut"]
    about = [each for each, it in zip(result.findings, right, strict=True) if it]
    checked = next((each for each in about if each.causal is not None), None)
    shown = None if checked is None else verdict_where_shown(lake, scenes(), checked)
    return {
        "stickers": len(marked),
        "maps": result.manifest.counted,
        "found_first": bool(right) and right[0],
        "found": bool(about),
        "other_class": any(at_the_sticker(each, marked) and not about_the_sticker(each, marked) for each in shortcuts),
        "false_flag": any(not at_the_sticker(each, marked) for each in shortcuts),
        "said_used": None if checked is None or checked.causal is None else checked.causal.used,
        "where_shown": shown,
        "findings": [_short(each, it, marked) for each, it in zip(result.findings, right, strict=True)],
    }


def _short(finding: Finding, right: bool, marked: set[str]) -> Row:
    return {
        "kind": finding.kind,
        "class": finding.target_class,
        "group": f"{finding.attribute}={finding.value}" if finding.attribute else None,
        "measure": finding.measure,
        "where": finding.details.get("where"),
        "severity": round(finding.severity, 1),
        "effect": finding.effect,
        "q": finding.q,
        "used": None if finding.causal is None else finding.causal.used,
        "sticker": right,
        "images": len(finding.images),
        "marked": sum(image.image_id in marked for image in finding.images),
    }


def planted(folder: Path, seed: int, prevalence: float, sizes: Sizes) -> Row:
    """Train, explain, audit, and say what came out."""
    weights = network(folder, seed, prevalence, sizes)
    home = folder / f"lake-{seed}-{prevalence:g}"
    scenes = partial(held_out, seed, prevalence, sizes)
    lake = explained(home, weights, scenes, sizes)
    row = {"work": "planted", "seed": seed, "prevalence": prevalence} | _learnt(weights, seed, sizes)
    row |= audited(lake, home, scenes)
    if prevalence == _SEPARATED:
        row["check"] = verdict(lake, scenes())
    return row


def harmless(folder: Path, seed: int, sizes: Sizes) -> Row:
    """Audit and check patches that go with the class, and that the network does not use."""
    weights = network(folder, seed, 0.0, sizes)
    home = folder / f"lake-{seed}-harmless"
    scenes = partial(held_out, seed, _HARMLESS, sizes, CONTROL_COLOURS)
    lake = explained(home, weights, scenes, sizes)
    row = {"work": "harmless", "seed": seed, "prevalence": None} | _learnt(weights, seed, sizes)
    return row | audited(lake, home, scenes) | {"check": verdict(lake, scenes())}


def _learnt(weights: Path, seed: int, sizes: Sizes) -> Row:
    """Return how well a network does, and what the sticker alone does to it."""
    scenes = plain_scenes(min(_MEASURED, sizes.held_out), "test", 5000 + seed)
    model = loaded(weights)
    accuracy = measure_accuracy(model, scenes)
    effect = measure_sticker(model, scenes, PLAIN, seed=seed)
    return {"mean_average_precision": accuracy.mean_average_precision, "effect": asdict(effect)}


def summary(rows: Sequence[Row]) -> list[str]:
    """Return tables in Markdown."""
    lines = [
        "| prevalence | seeds | found first | found | said to be used | another class there | false flag "
        "| sticker's effect (range) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    mine = [row for row in rows if row["work"] == "planted"]
    for level in sorted({row["prevalence"] for row in mine}, reverse=True):
        some = [row for row in mine if row["prevalence"] == level]
        checked = [row["said_used"] for row in some if row["said_used"] is not None]
        lines.append(
            f"| {level:.0%} | {len(some)} | {_of(row['found_first'] for row in some)} | "
            f"{_of(row['found'] for row in some)} | {_of(checked)} | {_of(row['other_class'] for row in some)} | "
            f"{_of(row['false_flag'] for row in some)} | {_effect(some)} |"
        )
    unused = [row for row in rows if row["work"] == "harmless"]
    if unused:
        stickers = {row["seed"]: row["check"] for row in mine if row.get("check")}
        checked = [row["check"] for row in unused if row["check"]]
        said = [row["said_used"] for row in unused if row["said_used"] is not None]
        pairs = [(stickers[row["seed"]], row["check"]) for row in unused if row["check"] and row["seed"] in stickers]
        lines += [
            "",
            "| the harmless patch | |",
            "|---|---|",
            f"| its effect | {_effect(unused, 'control')} |",
            f"| flagged | {_of(row['found'] for row in unused)} |",
            f"| of these, said to be used | {_of(said)} |",
            f"| change where the spot is on the patch (range) | {_changes(unused)} |",
            f"| other false flags | {_of(row['false_flag'] for row in unused)} |",
            f"| the very patches said to be used | {_of(each['used'] for each in checked)} |",
            f"| the very patches said not to be used | {_of(each['unused'] for each in checked)} |",
            f"| the very stickers said to be used | {_of(one['used'] for one, _ in pairs)} |",
            f"| separated | {_of(one['used'] and not other['used'] for one, other in pairs)} |",
        ]
    return lines


def _of(values: Iterable[bool | None]) -> str:
    """Return 'k of n'."""
    listed = [bool(value) for value in values]
    return f"{sum(listed)} of {len(listed)}"


def _changes(rows: Sequence[Row]) -> str:
    """Return the mean changes of probability in the images behind findings whose spots are on the patch."""
    found = [row["where_shown"] for row in rows if row.get("where_shown")]
    if not found:
        return "-"
    changes = [each["change"] for each in found]
    images, behind = sum(each["images"] for each in found), sum(each["behind"] for each in found)
    return f"{np.mean(changes):+.2f} ({min(changes):+.2f} to {max(changes):+.2f}), {images} of {behind} images"


def _effect(rows: Sequence[Row], what: str = "sticker") -> str:
    found = [row["effect"][what] - row["effect"]["plain"] for row in rows]
    return f"{np.mean(found):+.2f} ({min(found):+.2f} to {max(found):+.2f})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is left and print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.planted",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="for networks, lakes and results")
    parser.add_argument("--seeds", type=positive, default=20, help="networks per prevalence (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: %(default)s)")
    parser.add_argument("--prevalence", type=float, nargs="+", default=list(_LEVELS), help="shares of the eights")
    parser.add_argument("--no-harmless", action="store_true", help="leave the harmless sticker out")
    parser.add_argument("--again", action="store_true", help="audit what is there anew (networks and lakes are kept)")
    parser.add_argument("--threads", type=positive, default=1, help="torch threads (default: %(default)s)")
    parser.add_argument("--close-ups", type=positive, default=7000, help="of the first course (default: %(default)s)")
    parser.add_argument("--scenes", type=positive, default=6000, help="of the second course (default: %(default)s)")
    parser.add_argument("--held-out", type=positive, default=2400, help="scenes per lake (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rows there")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    sizes = Sizes(options.close_ups, options.scenes, options.held_out, options.threads)
    options.folder.mkdir(parents=True, exist_ok=True)
    kept = options.folder / "rows.jsonl"
    rows = _read(kept)
    for seed in range(options.first, options.first + options.seeds):
        todo: list[tuple[tuple[str, int, float | None], Callable[[], Row]]] = [
            (("planted", seed, level), partial(planted, options.folder, seed, level, sizes))
            for level in options.prevalence
        ]
        if not options.no_harmless:
            todo.append((("harmless", seed, None), partial(harmless, options.folder, seed, sizes)))
        for key, make in todo:
            if key in rows and not options.again:
                continue
            began, cpu = time.perf_counter(), time.process_time()
            rows[key] = make()
            with kept.open("a") as file:
                file.write(json.dumps(rows[key]) + "\n")
            say(f"{key}: {time.perf_counter() - began:.0f} s, {time.process_time() - cpu:.0f} s of CPU")
    print("\n".join(summary(list(rows.values()))))
    if options.json:
        options.json.write_text(json.dumps({"rows": list(rows.values())}, indent=1))
    return 0


def _read(kept: Path) -> dict[tuple[str, int, float | None], Row]:
    """Return the rows that are kept; of two of the same work the later one counts."""
    if not kept.is_file():
        return {}
    rows = [json.loads(line) for line in kept.read_text().splitlines()]
    return {(row["work"], row["seed"], row["prevalence"]): row for row in rows}


if __name__ == "__main__":
    raise SystemExit(main())

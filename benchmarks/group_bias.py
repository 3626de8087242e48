"""Does the audit find a group whose objects lie elsewhere, and not one that only has another mix of classes?

    python -m benchmarks.group_bias FOLDER [--seeds 10] [--json FILE]

The networks are those of :mod:`benchmarks.planted` at prevalence 0, in the same folder; the sites are dealt out after
the scenes are drawn, so that no picture is changed.

- *Bias*: scenes of one to three digits, of which those with a five that lies in the upper left quarter are all at the
  site east, and all other fives at north and south; scenes without a five are dealt out evenly. *Found first*: the
  first finding that is about a group is about the fives at east; *named*: such a finding says the upper left; *false
  flag*: a finding about a group is not about the fives.
- *Trap* (Simpson): scenes of one digit, odd digits in the left half and even ones in the right half, at two sites, of
  which one has four fifths of the even digits and the other of the odd ones. As a whole the sites' maps lie far apart;
  within each class they do not. *False flag*: any finding is about a site. *A class's place*: a shortcut candidate
  without a group, of a class whose digits end sharply at the middle of the view.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.inputs import positive, say
from benchmarks.sticker_networks import PLAIN, Sizes, explained, network
from jobs.demo.digits import CLASS_NAMES
from jobs.demo.scenes import Scene, make_scenes
from pipeline.audit.intervals import cohens_d
from pipeline.audit.run import run_audit
from pipeline.lake import open_lake
from schemas.audit import Finding, Settings

_CLASS, _SITE = 5, "east"
#: Of the view's side, from the upper left: centres of biased objects lie nearer.
_NEAR = 0.5
_MOST = 0.8

Row = dict[str, Any]


def biased(count: int, seed: int) -> list[Scene]:
    """Draw scenes in which the fives of the upper left are those of one site."""
    scenes = make_scenes(count, split="test", seed=12_000 + seed, spec=PLAIN)
    others = [site for site in PLAIN.sites if site != _SITE]
    dealt = {True: 0, False: 0}
    found = []
    for scene in scenes:
        has = _CLASS in scene.labels
        if has and max(_centre(scene, _CLASS)) < _NEAR:
            site = _SITE
        else:
            sites = others if has else PLAIN.sites
            site = sites[dealt[has] % len(sites)]
            dealt[has] += 1
        found.append(replace(scene, site=site))
    return found


def trapped(count: int, seed: int) -> list[Scene]:
    """Draw scenes of one digit: where it lies depends on its class, the site on its class alone."""
    spec = replace(PLAIN, counts=(1.0,))
    rng = np.random.default_rng([seed, 17])
    found = []
    for scene in make_scenes(2 * count + 200, split="test", seed=14_000 + seed, spec=spec):
        even = scene.labels[0] % 2 == 0
        if (_centre(scene, scene.labels[0])[0] > 0.5) is even:
            most, least = ("north", "south") if even else ("south", "north")
            found.append(replace(scene, site=most if rng.random() < _MOST else least))
    return found[:count]


def _centre(scene: Scene, digit: int) -> tuple[float, float]:
    """Return (x, y) of the middle of a digit's box, in shares of the view."""
    x0, y0, x1, y1 = scene.boxes[scene.labels.index(digit)]
    size = len(scene.masks)
    return (x0 + x1) / 2 / size, (y0 + y1) / 2 / size


def bias(folder: Path, seed: int, count: int, sizes: Sizes) -> Row:
    """Explain and audit a planted difference of a group."""
    home = folder / f"lake-{seed}-bias"
    lake = explained(home, network(folder, seed, 0.0, sizes), lambda: biased(count, seed), sizes)
    found = [each for each in _findings(lake, home, Settings(groups=("site",))) if each.attribute]
    right = [each.target_class == _CLASS and each.value == _SITE for each in found]
    return {
        "work": "bias",
        "seed": seed,
        "n": found[0].n if found else 0,
        "found_first": bool(right) and right[0],
        "found": any(right),
        "named": any(it and _upper_left(each) for each, it in zip(found, right, strict=True)),
        "false_flag": any(each.target_class != _CLASS for each in found),
        "findings": [each.sentence for each in found],
    }


def _upper_left(finding: Finding) -> bool:
    """Say whether a finding's words name the upper left, as each kind calls it."""
    return finding.details.get("place") == "at the top left" or "upper left" in finding.details.get("where", "")


def trap(folder: Path, seed: int, count: int, sizes: Sizes) -> Row:
    """Explain and audit a difference that vanishes within classes."""
    home = folder / f"lake-{seed}-trap"
    lake = explained(home, network(folder, seed, 0.0, sizes), lambda: trapped(count, seed), sizes)
    everything = _findings(lake, home, Settings(groups=("site",), targets="label"))
    found = [each for each in everything if each.attribute]
    return {
        "work": "trap",
        "seed": seed,
        "pooled_d": _pooled(lake),
        "false_flag": bool(found),
        "class_place": any(each.kind == "shortcut" and not each.attribute for each in everything),
        "findings": [each.sentence for each in found],
    }


def _pooled(lake_uri: str) -> float:
    """Return the standardised difference of the sites' centres of mass from the left, over all classes."""
    lake = open_lake(lake_uri)
    images = lake.images.to_table(columns=["image_id", "site"])
    site = dict(zip(images["image_id"].to_pylist(), images["site"].to_pylist(), strict=True))
    maps = lake.maps.to_table(columns=["image_id", "centre_x"])
    north = np.array([site[image] == "north" for image in maps["image_id"].to_pylist()])
    centre = maps["centre_x"].to_numpy().astype(np.float64)  # NaN of a map that is zero
    own, other = (centre[side & ~np.isnan(centre)] for side in (north, ~north))
    return float(cohens_d(own.mean(), own.var(ddof=1), len(own), other.mean(), other.var(ddof=1), len(other)))


def _findings(lake: str, home: Path, settings: Settings) -> list[Finding]:
    """Return all findings, the worst first."""
    return run_audit(lake, settings, str(home.absolute() / "audit"), say=lambda line: None, workers=0).findings


def summary(rows: Sequence[Row]) -> list[str]:
    """Return a table in Markdown."""
    lines = ["| planted | seeds | found first | found | named | false flag | a class's place |", f"|{'---|' * 7}"]
    some = [row for row in rows if row["work"] == "bias"]
    if some:
        counts = (sum(row[name] for row in some) for name in ("found_first", "found", "named", "false_flag"))
        what = f"'{CLASS_NAMES[_CLASS]}' at {_SITE} always in the upper left"
        lines.append(f"| {what} | {len(some)} | {' | '.join(map(str, counts))} | |")
    some = [row for row in rows if row["work"] == "trap"]
    if some:
        apart = np.mean([abs(row["pooled_d"]) for row in some])
        flags, places = (sum(row[name] for row in some) for name in ("false_flag", "class_place"))
        what = f"another mix of classes (sites {apart:.1f} deviations apart)"
        lines.append(f"| {what} | {len(some)} | | | | {flags} | {places} |")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.group_bias",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="of networks and lakes; those that are there are used again")
    parser.add_argument("--seeds", type=positive, default=10, help="networks (default: %(default)s)")
    parser.add_argument("--threads", type=positive, default=1, help="torch threads (default: %(default)s)")
    parser.add_argument("--close-ups", type=positive, default=7000, help="of the first course (default: %(default)s)")
    parser.add_argument("--scenes", type=positive, default=6000, help="of the second course (default: %(default)s)")
    parser.add_argument("--held-out", type=positive, default=3000, help="scenes per lake (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rows there")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    sizes = Sizes(options.close_ups, options.scenes, options.held_out, options.threads)
    options.folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in range(options.seeds):
        for make in (bias, trap):
            began = time.perf_counter()
            rows.append(make(options.folder, seed, options.held_out, sizes))
            say(f"{make.__name__} {seed}: {time.perf_counter() - began:.0f} s")
    print("\n".join(summary(rows)))
    if options.json:
        options.json.write_text(json.dumps({"rows": rows}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

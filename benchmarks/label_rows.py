"""The results of the benchmark of label quality: kept as they come, and as a table."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.inputs import say
from benchmarks.label_intervals import ImageCounts, difference


class Rows:
    """Results by key, kept in a file as they come."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._file = folder / "rows.jsonl"
        lines = self._file.read_text().splitlines() if self._file.exists() else []
        self.found: dict[str, dict[str, Any]] = {row["key"]: row for row in map(json.loads, lines)}

    def add(self, key: str, **values: Any) -> None:
        """Keep a result, and tell."""
        self.found[key] = {"key": key, **values}
        with self._file.open("a") as file:
            file.write(json.dumps(self.found[key]) + "\n")
        say(f"{key}: {values}")

    def counts(self, key: str) -> Path:
        """Return where the counts of each image behind a result are kept."""
        return self._folder / "counts" / f"{key.replace('|', '--')}.npz"


def table(rows: Rows) -> list[str]:
    """Return all results as Markdown."""
    lines: list[str] = []
    for name in ("scenes", "coco", "boxes"):
        mine = {key: row for key, row in rows.found.items() if key.split("|")[0] == name}
        measured = [key for key in mine if key.count("|") == 3]
        if not mine:
            continue
        lines += ["", f"{name}, {max((mine[key]['images'] for key in measured), default=0)} images", ""]
        lines += [
            "| method | maps | refinement | mIoU at .15 | chosen threshold | mIoU there | 95% interval | CPU s/image |"
        ]
        lines += ["|---|---|---|---|---|---|---|---|"]
        for key in measured:
            row = mine[key]
            _, method, scales, refine = key.split("|")
            low, high = row["interval"]
            values = f"{row['plain']:.3f} | {row['threshold']:.2f} | {row['chosen']:.3f} | {low:.3f} to {high:.3f}"
            lines.append(f"| {method} | {scales} | {refine} | {values} | {row['seconds_per_image']:.2f} |")
        lines += [
            f"| *{key.split('|')[1]}* | | | {mine[key]['miou']:.3f} | | | | |" for key in mine if key not in measured
        ]
        lines += _gains(rows, measured)
    return lines + _networks(rows)


def _gains(rows: Rows, keys: list[str]) -> list[str]:
    """Return what refinement and several scales bring, on the same images, where counts of both are kept."""
    lines = []
    for key in keys:
        name, method, scales, refine = key.split("|")
        others = [
            ("PAMR", f"{name}|{method}|{scales}|none", refine == "pamr"),
            ("four scales", f"{name}|{method}|one scale|{refine}", scales != "one scale"),
        ]
        for what, other, wanted in others:
            if wanted and other in keys and rows.counts(key).exists() and rows.counts(other).exists():
                low, high = difference(ImageCounts.load(rows.counts(key)), ImageCounts.load(rows.counts(other)))
                gain = rows.found[key]["chosen"] - rows.found[other]["chosen"]
                lines.append(
                    f"| {what} | {method}, {refine if what != 'PAMR' else scales} | {gain:+.3f} | "
                    f"{low:+.3f} to {high:+.3f} |"
                )
    head = ["", "| what | with | gain in mIoU | 95% interval |", "|---|---|---|---|"]
    return [*head, *lines] if lines else []


def _networks(rows: Rows) -> list[str]:
    """Return the networks trained, each kind of labels with the mean over its seeds and the ends of their range."""
    by_labels: dict[str, list[dict[str, Any]]] = {}
    for key, row in rows.found.items():
        if key.startswith("train|"):
            by_labels.setdefault(" ".join(key.split("|")[1:-1]), []).append(row)
    if not by_labels:
        return []
    lines = ["", "| U-Net trained on | mIoU of these labels | seeds | mIoU of the network | of full supervision |"]
    lines += ["|---|---|---|---|---|"]
    means = {name: fmean(row["network"] for row in found) for name, found in by_labels.items()}
    full = means.get("true masks")
    for name, found in by_labels.items():
        scores = [row["network"] for row in found]
        spread = f"{means[name]:.3f} ({min(scores):.3f} to {max(scores):.3f})"
        share = f"{means[name] / full:.0%}" if full else ""
        lines.append(f"| {name} | {found[0]['labels']:.3f} | {len(found)} | {spread} | {share} |")
    return lines

"""The results of the benchmark of label quality: kept as they come, and as a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.inputs import say


class Rows:
    """Results by key, kept in a file as they come."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "rows.jsonl"
        lines = self._file.read_text().splitlines() if self._file.exists() else []
        self.found: dict[str, dict[str, Any]] = {row["key"]: row for row in map(json.loads, lines)}

    def add(self, key: str, **values: Any) -> None:
        """Keep a result, and tell."""
        self.found[key] = {"key": key, **values}
        with self._file.open("a") as file:
            file.write(json.dumps(self.found[key]) + "\n")
        say(f"{key}: {values}")


def table(rows: Rows) -> list[str]:
    """Return all results as Markdown."""
    lines: list[str] = []
    for name in ("scenes", "coco", "boxes"):
        mine = {key: row for key, row in rows.found.items() if key.split("|")[0] == name}
        measured = [key for key in mine if key.count("|") == 3]
        if not mine:
            continue
        lines += ["", f"{name}, {max((mine[key]['images'] for key in measured), default=0)} images", ""]
        lines += ["| method | maps | refinement | mIoU at .15 | chosen threshold | mIoU there | CPU s/image |"]
        lines += ["|---|---|---|---|---|---|---|"]
        for key in measured:
            row = mine[key]
            _, method, scales, refine = key.split("|")
            values = f"{row['plain']:.3f} | {row['threshold']:.2f} | {row['chosen']:.3f}"
            lines.append(f"| {method} | {scales} | {refine} | {values} | {row['seconds_per_image']:.2f} |")
        lines += [
            f"| *{key.split('|')[1]}* | | | {mine[key]['miou']:.3f} | | | |" for key in mine if key not in measured
        ]
    mine = {key: row for key, row in rows.found.items() if key.startswith("train|")}
    if mine:
        full = mine.get("train|true masks", {}).get("network")
        lines += ["", "| U-Net trained on | mIoU of these labels | mIoU of the network | of full supervision |"]
        lines += ["|---|---|---|---|"]
        for key, row in mine.items():
            share = f"{row['network'] / full:.0%}" if full else ""
            lines.append(f"| {' '.join(key.split('|')[1:])} | {row['labels']:.3f} | {row['network']:.3f} | {share} |")
    return lines

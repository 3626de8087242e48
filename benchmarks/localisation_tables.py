"""The tables of :mod:`benchmarks.localisation`, in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.effects import CONVENTIONS

Row = dict[str, Any]

#: Columns of the first table: name, heading, digits, factor.
LOCATED = (
    ("pointing", "pointing", 1, 100),
    ("energy", "energy", 1, 100),
    ("enrichment", "enrichment", 2, 1),
    ("max_box_acc", "MaxBoxAcc", 1, 100),
    ("max_box_acc_v2", "V2", 1, 100),
    ("max_box_acc_v2_30", "V2 at .3", 1, 100),
    ("max_box_acc_v2_50", "at .5", 1, 100),
    ("max_box_acc_v2_70", "at .7", 1, 100),
    ("px_ap", "PxAP", 1, 100),
    ("wsolevaluation", "wsolevaluation's MaxBoxAcc", 1, 100),
    ("wsolevaluation_v2", "its V2", 1, 100),
    ("one_threshold", "with one threshold", 1, 100),
)
EFFECTS = ("drop", "increase")
_FIRST = str(CONVENTIONS[0])


def tables(rows: Sequence[Row]) -> list[str]:
    """Return the tables as Markdown; shares in percent. Maps of which all figures are equal share a line."""
    lines: list[str] = []
    for targets in ("label", "predicted"):
        mine = [row for row in rows if row["targets"] == targets]
        columns = [each for each in LOCATED if any(row[each[0]] is not None for row in mine)]
        bands = mine[0]["by_probability"]
        of = "the labelled class (GT-known)" if targets == "label" else "the predicted class"
        lines += _table(
            f"Maps of {of}, {mine[0]['images']} images:",
            [*(heading for _, heading, _, _ in columns), "avg drop", "increase", "kept"],
            {
                row["method"]: [
                    *(_number(row[name], digits, factor) for name, _, digits, factor in columns),
                    *(_with_error(row[_FIRST], name) for name in EFFECTS),
                    _number(row["kept"], 1, 100),
                ]
                for row in mine
            },
        )
        lines += _table(
            "Average drop / increase by convention, and the ratio of means:",
            [*map(str, CONVENTIONS), "ratio of means"],
            {
                row["method"]: [
                    *(_pair(row[str(each)]) for each in CONVENTIONS),
                    _number(row[_FIRST]["ratio_of_means"], 1, 100),
                ]
                for row in mine
            },
        )
        lines += _table(
            "Average drop / increase of images by the class's probability:",
            [f"{each['from']:g} to {each['to']:g} ({each['images']})" for each in bands],
            {row["method"]: [_pair(each) for each in row["by_probability"]] for row in mine},
        )
    return lines


def _table(title: str, heads: Sequence[str], cells: dict[str, list[str]]) -> list[str]:
    alike: dict[tuple[str, ...], list[str]] = {}
    for name, values in cells.items():
        alike.setdefault(tuple(values), []).append(name)
    body = [_line([", ".join(names), *values]) for values, names in alike.items()]
    return [title, "", _line(["map", *heads]), f"|{'---|' * (len(heads) + 1)}", *body, ""]


def _pair(values: Row) -> str:
    return " / ".join(_number(values[name], 1, 100) for name in EFFECTS)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: float | None, digits: int, factor: int) -> str:
    return "-" if value is None or math.isnan(value) else f"{factor * value:.{digits}f}"


def _with_error(values: Row, name: str) -> str:
    return f"{_number(values[name], 1, 100)} ± {_number(values[f'{name}_error'], 1, 100)}"

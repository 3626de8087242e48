"""What an evaluation came to: as JSON, as tables, as a curve, and as text."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.pseudolabels.confusion import IGNORED, ClassResult, Totals, class_results, totals
from pipeline.pseudolabels.curve import svg_curve
from pipeline.pseudolabels.evaluate import Counted, Coverage
from pipeline.pseudolabels.sweep import RULES, Point, best_of

REPORT, CLASS_TABLE, MATRIX, CURVE_TABLE = "evaluation.json", "classes.parquet", "confusion.parquet", "sweep.parquet"
_CURVES = {"constant": "sweep.svg", "power": "sweep-power.svg"}
_SHOWN = 40


@dataclass(frozen=True)
class Evaluation:
    """Labels compared with the truth over a dataset.

    ``points`` is empty where no scores were swept, and ``no_sweep`` says why.
    """

    labels: str
    truth: str
    counted: Counted
    coverage: Coverage
    classes: Sequence[ClassResult]
    totals: Totals
    points: Sequence[Point]
    no_sweep: str | None

    def document(self) -> dict[str, Any]:
        """Return everything but the single pairs, as JSON has it."""
        pairs = self.counted.confusion.pairs
        return {
            "labels": self.labels,
            "truth": self.truth,
            "images": self.counted.images,
            "images_without_truth": self.coverage.without_truth,
            "images_without_labels": self.coverage.without_labels,
            "pixels": sum(pairs.values()),
            "pixels_ignored_by_truth": self.counted.confusion.ignored,
            "pixels_ignored_by_labels": sum(count for (_, label), count in pairs.items() if label == IGNORED),
            **asdict(self.totals),
            "classes": [class_row(each) for each in self.classes],
            "sweep": None if not self.points else self._sweep(),
            "no_sweep": self.no_sweep,
        }

    def _sweep(self) -> dict[str, Any]:
        found: dict[str, Any] = {"images": self.counted.swept}
        for rule in _CURVES:
            best = best_of(self.points, rule)
            found[rule] = None if best is None else {"value": best.value, "miou": best.totals.miou}
        return found

    def files(self) -> dict[str, bytes]:
        """Return the files of the evaluation by name."""
        pairs = self.counted.confusion.pairs
        found = {
            REPORT: (json.dumps(self.document(), indent=1, ensure_ascii=False) + "\n").encode(),
            CLASS_TABLE: _parquet(pa.Table.from_pylist([class_row(each) for each in self.classes], _CLASSES)),
            MATRIX: _parquet(
                pa.Table.from_pylist(
                    [{"true_id": a, "label_id": b, "pixels": count} for (a, b), count in sorted(pairs.items())], _MATRIX
                )
            ),
        }
        if self.points:
            rows = [{"rule": each.rule, "value": each.value, **asdict(each.totals)} for each in self.points]
            found[CURVE_TABLE] = _parquet(pa.Table.from_pylist(rows, _POINTS))
            for rule, name in _CURVES.items():
                best = best_of(self.points, rule)
                if best is not None:
                    chosen = [each for each in self.points if each.rule == rule]
                    found[name] = svg_curve(chosen, best, f"{self.counted.swept} images, {rule} background").encode()
        return found

    def lines(self) -> list[str]:
        """Return the evaluation as a person reads it."""
        figures, document = self.totals, self.document()
        ignored = document["pixels_ignored_by_labels"]
        lines = [
            f"images    {self.counted.images} compared at full size"
            + (f", {self.coverage.without_truth} without a true mask" if self.coverage.without_truth else "")
            + (f", {self.coverage.without_labels} without labels" if self.coverage.without_labels else ""),
            f"pixels    {document['pixels']}, without {document['pixels_ignored_by_truth']} that the truth ignores"
            f"{_share(ignored, document['pixels'], '; the labels ignore')}",
            f"mIoU      {_number(figures.miou)} over {sum(each.iou is not None for each in self.classes)} classes"
            + (f", {_number(figures.miou_left_out)} without the pixels that the labels ignore" if ignored else ""),
            f"accuracy  {_number(figures.accuracy)} of the pixels"
            + (f", {_number(figures.accuracy_left_out)} without those" if ignored else ""),
            f"mean      over-activation {_number(figures.over)}, under-activation {_number(figures.under)}",
            "",
            f"{'id':>6} {'IoU':>6} {'precision':>10} {'recall':>7} {'pixels':>11}  class",
        ]
        for each in self.classes[:_SHOWN]:
            pixels = each.true_positives + each.false_negatives + each.left_out
            lines.append(
                f"{each.id:>6} {_number(each.iou):>6} {_number(each.precision):>10} {_number(each.recall):>7} "
                f"{pixels:>11}  {each.name}"
            )
        if len(self.classes) > _SHOWN:
            lines.append(f"       and {len(self.classes) - _SHOWN} more in {CLASS_TABLE}")
        lines.append("")
        for rule in _CURVES if self.points else ():
            best = best_of(self.points, rule)
            if best is not None:
                field = "threshold" if rule == "constant" else "power"
                lines.append(
                    f"sweep     best {rule} background: {field} {best.value:g}, mIoU {_number(best.totals.miou)}"
                )
        if self.no_sweep is not None:
            lines.append(f"sweep     none: {self.no_sweep}")
        return lines


def make_evaluation(
    labels: str,
    truth: str,
    counted: Counted,
    coverage: Coverage,
    name: Callable[[int], str],
    no_sweep: str | None,
    rules: Sequence[str] = RULES,
) -> Evaluation:
    """Return the evaluation of what was counted.

    Args:
        labels: URI.
        truth: URI.
        counted: over all images.
        coverage: and which were left out.
        name: of an id.
        no_sweep: why there is no sweep; None where there is one.
        rules: of the background, that are swept.
    """
    classes = class_results(counted.confusion.pairs, name)
    points = counted.sweep.points(name, rules) if counted.swept else []
    return Evaluation(labels, truth, counted, coverage, classes, totals(classes), points, no_sweep)


def class_row(found: ClassResult) -> dict[str, Any]:
    """Return a class as a row of ``classes.parquet``."""
    return {
        **asdict(found),
        "iou": found.iou,
        "iou_left_out": found.iou_left_out,
        "precision": found.precision,
        "recall": found.recall,
        "over_activation": None if found.precision is None else 1 - found.precision,
        "under_activation": None if found.recall is None else 1 - found.recall,
    }


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _share(part: int, whole: int, words: str) -> str:
    return f"{words} {part} ({part / whole:.1%})" if part else ""


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


_COUNTS = ("true_positives", "false_positives", "false_negatives", "left_out")
_RATIOS = ("iou", "iou_left_out", "precision", "recall", "over_activation", "under_activation")
_CLASSES = pa.schema(
    [
        pa.field("id", pa.int32(), False),
        pa.field("name", pa.string(), False),
        *(pa.field(name, pa.int64(), False) for name in _COUNTS),
        *(pa.field(name, pa.float64()) for name in _RATIOS),
    ]
)
_MATRIX = pa.schema(
    [
        pa.field("true_id", pa.int32(), False),
        pa.field("label_id", pa.int32(), False, {"doc": "-1: the labels ignore these pixels"}),
        pa.field("pixels", pa.int64(), False),
    ]
)
_POINTS = pa.schema(
    [
        pa.field("rule", pa.string(), False),
        pa.field("value", pa.float64(), False),
        *(pa.field(name, pa.float64()) for name in Totals.__dataclass_fields__),
    ]
)

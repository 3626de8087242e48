"""How well maps find objects and mark what the model uses, on real images: the figures that papers print.

    python -m benchmarks.localisation --model resnet50 --weights URI --images GLOB [--boxes FIELD] [--json FILE]

The images are explained by a real job (in this process), and its lake is measured as ``camlake audit`` does it:
pointing game, energy in the box, enrichment, MaxBoxAcc, MaxBoxAccV2 and PxAP beside a Gaussian in the middle
(``pipeline/audit/wsol.py``), average drop and increase in confidence (``pipeline/cam/faithfulness.py``), both for the
labelled and for the predicted class. A second table gives drop and increase by other conventions, a third those of
images by how sure the model is.

``--images`` are WebDataset tars whose JSON holds boxes (xyxy in pixels) under ``--boxes``. Without them scenes of
digits are drawn, one digit each; with random weights the numbers mean nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from benchmarks.effects import BASELINES, CONVENTIONS, Effect, effects, mean_and_error
from benchmarks.harness import machine
from benchmarks.inputs import positive, say
from benchmarks.localisation_tables import EFFECTS, LOCATED, Row, tables
from jobs.demo.scenes import SceneSpec, make_scenes
from jobs.demo.shards import write_shards
from pipeline.audit.frame import Frame, make_frame
from pipeline.audit.localisation import bell
from pipeline.audit.localisation_table import CENTRE, localisation_table
from pipeline.audit.model import load_model
from pipeline.audit.regions import open_regions
from pipeline.audit.regions.base import RegionSource
from pipeline.audit.wsol import outlines
from pipeline.cam.base import MaskMethod
from pipeline.lake import Lake, open_lake
from pipeline.lake.reader import view_of
from pipeline.models.replica import load_replica
from schemas.audit import Settings
from schemas.errors import CamlakeError
from schemas.job import Model
from schemas.registries import METHODS, implementation

_SURE = ((0.0, 0.5), (0.5, 0.9), (0.9, 1.01))
_SAME = 1e-3
_SCENE = SceneSpec(counts=(1.0,), prevalence=0.0)


def explain(folder: Path, options: argparse.Namespace) -> Lake:
    """Explain the images of the command line, and return the lake."""
    from tests.jobs.inline import run_inline

    images = options.images
    if images is None:
        write_shards(make_scenes(options.scenes, split="test", spec=_SCENE), folder / "scenes", shards=2)
        images = str(folder / "scenes" / "*.tar")
    boxes = [] if options.boxes == "none" else [{"name": "boxes", "field": options.boxes}]
    model = model_document(options)
    run_inline(
        {
            "source": {"uri": images, "format": "webdataset", "label": "cls", "attributes": boxes},
            "model": model,
            "targets": {"label": True, "predicted": True},
            "methods": methods_of(model, options.score_cam),
            "output": {"uri": str(folder / "lake")},
            "compute": {"batch_size": 32, "threads": torch.get_num_threads()},
        }
    )
    return open_lake(str(folder / "lake"))


def model_document(options: argparse.Namespace) -> dict[str, Any]:
    """Return the ``model`` part of the job."""
    given = {"resize": options.size, "crop": options.size, "mean": options.mean, "std": options.std}
    preprocess: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    document = {"name": options.model, "weights": options.weights, "preprocess": preprocess}
    if options.images is None:
        preprocess |= {"resize": _SCENE.size, "crop": _SCENE.size, "mean": [0.5] * 3, "std": [0.25] * 3}
        return document | {"activation": "sigmoid"}
    return document if ":" in options.model else document | {"name": f"torchvision:{options.model}"}


def methods_of(model: dict[str, Any], score_cam: bool) -> list[str]:
    """Return the methods that need no masked forwards, as far as the model allows them, and Score-CAM on request."""
    replica = load_replica(Model.model_validate(model))
    methods = [name for name in METHODS if not issubclass(implementation(METHODS, "method", name).METHOD, MaskMethod)]
    methods = [name for name in methods if name != "cam" or replica.head is not None]
    return [*methods, "score_cam"] if score_cam else methods


def rows_of(lake: Lake, found: Sequence[Effect], boxes: bool, protocol: bool = False) -> list[Row]:
    """Return one row per target, method and layer, and per baseline: localisation, drop, increase and kept."""
    rows: list[Row] = []
    for target in ("label", "predicted"):
        settings = Settings(targets=target, boxes="boxes" if boxes else None)
        frame = make_frame(lake, settings)
        mine = targeted(lake, found, target)
        located = _located(lake, frame, settings, protocol) if boxes else {}
        drop, increase = (mean_and_error(torch.stack([getattr(each, name) for each in mine])) for name in EFFECTS)
        kept = torch.stack([each.kept for each in mine]).nanmean(0)
        ratio = _ratio_of_means(mine)
        names = [(each.method, each.layer) for each in frame.series] + [(name, "") for name in BASELINES]
        for place, (method, layer) in enumerate(names):
            row: Row = {"targets": target, "method": method, "layer": layer, "images": len(mine)}
            row |= {name: located.get((method, layer), {}).get(name) for name, *_ in LOCATED}
            row["kept"] = float(kept[place])
            for number, convention in enumerate(CONVENTIONS):
                row[str(convention)] = {
                    "drop": float(drop[0][number, place]),
                    "drop_error": float(drop[1][number, place]),
                    "increase": float(increase[0][number, place]),
                    "increase_error": float(increase[1][number, place]),
                    "ratio_of_means": float(ratio[number, place]),
                }
            row["by_probability"] = [
                _band([each for each in mine if low <= each.sure < high], place, low, high) for low, high in _SURE
            ]
            rows.append(row)
    return rows


def targeted(lake: Lake, found: Iterable[Effect], targets: str) -> list[Effect]:
    """Return the effects of the labelled or the predicted class."""
    images = lake.images.to_table(columns=["image_id", "label", "predicted_class"])
    column = "label" if targets == "label" else "predicted_class"
    wanted = set(zip(images["image_id"].to_pylist(), images[column].to_pylist(), strict=True))
    return [each for each in found if (each.image_id, each.target) in wanted]


def _located(lake: Lake, frame: Frame, settings: Settings, protocol: bool) -> dict[tuple[str, str], Row]:
    regions = open_regions(settings, lake)
    assert regions is not None  # the settings name a column
    table = localisation_table(lake, frame, regions, frame.images)
    named = {(row["method"], row["layer"]): row for row in table.to_pylist()}
    if protocol:
        for key, row in by_wsolevaluation(lake, frame, regions).items():
            named[key] |= {
                "wsolevaluation": row["max_box_acc"],
                "wsolevaluation_v2": row["max_box_acc_v2"],
                "one_threshold": row["one_threshold"],
            }
    return {(BASELINES[-1] if method == CENTRE else method, layer): row for (method, layer), row in named.items()}


def by_wsolevaluation(lake: Lake, frame: Frame, regions: RegionSource) -> dict[tuple[str, str], Row]:
    """Return MaxBoxAcc and MaxBoxAccV2 of each method as wsolevaluation defines them, of the same maps."""
    from tests.pipeline.audit.protocols import box_accuracies

    images = {row["image_id"]: row for row in lake.images.to_table().to_pylist()}
    chosen = pc.field("is_label" if frame.settings.targets == "label" else "is_predicted")
    found: dict[tuple[str, str], Row] = {}
    seen: dict[tuple[str, str], npt.NDArray[np.float32]] = {}
    prior = np.outer(bell(), bell())
    for method, layer in frame.series:
        maps: list[npt.NDArray[np.float32]] = []
        boxes: list[npt.NDArray[np.float64]] = []
        for about, values in lake.heatmaps(chosen, method=method, layer=layer, scaled=True):
            image = images[about["image_id"]]
            region = regions.region(image, about["target_class"], about["target_name"])
            if region is not None and len(objects := outlines(region, view_of(image))):
                maps.append(values)
                boxes.append(objects)
        stack = np.stack(maps)
        # Methods whose maps are equal but for rounding are measured once.
        twin = next((key for key, other in seen.items() if np.abs(other - stack).max() < _SAME), None)
        found[method, layer] = box_accuracies(stack, boxes) if twin is None else found[twin]
        seen[method, layer] = stack
    found[CENTRE, ""] = box_accuracies(np.broadcast_to(prior, (len(boxes), *prior.shape)), boxes)
    return found


def _ratio_of_means(found: Sequence[Effect]) -> torch.Tensor:
    """Return the sum of clipped differences over the sum of full scores: what the average drop is not."""
    lost = torch.stack([(each.full[:, None] - each.explained).clamp_min(0) for each in found]).nansum(0)
    ratio: torch.Tensor = lost / torch.stack([each.full for each in found]).sum(0)[:, None]
    return ratio


def _band(found: Sequence[Effect], place: int, low: float, high: float) -> Row:
    band: Row = {"from": low, "to": min(high, 1.0), "images": len(found), "drop": None, "increase": None}
    if found:
        band |= {
            name: float(torch.stack([getattr(each, name)[0, place] for each in found]).nanmean()) for name in EFFECTS
        }
    return band


def accuracy(lake: Lake) -> tuple[int, int]:
    """Return how many images are predicted as labelled, and how many there are."""
    images = lake.images.to_table(columns=["label", "predicted_class"])
    right = pc.sum(pc.equal(images["label"], images["predicted_class"]).cast(pa.int64())).as_py()
    return right or 0, len(images)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print the tables; return 0, or 2 for wrong input."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.localisation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model", default="jobs.demo.network:digit_net", help="torchvision's name, or as in a job file"
    )
    parser.add_argument("--weights", default="random", metavar="URI", help="weights file (default: untrained)")
    parser.add_argument("--images", metavar="GLOB", help="WebDataset tars (default: drawn scenes)")
    parser.add_argument("--boxes", default="boxes", metavar="FIELD", help="of the JSON; 'none': there are no boxes")
    parser.add_argument(
        "--size", type=positive, help="resize the shorter side to it and crop (default: the model's own)"
    )
    parser.add_argument("--mean", type=float, nargs=3, help="of the pixels in [0, 1] (default: the model's own)")
    parser.add_argument("--std", type=float, nargs=3, help="of the pixels in [0, 1] (default: the model's own)")
    parser.add_argument("--scenes", type=positive, default=60, help="scenes that are drawn (default: %(default)s)")
    parser.add_argument("--score-cam", action="store_true", help="Score-CAM, too: hundreds of forwards per image")
    parser.add_argument("--wsolevaluation", action="store_true", help="MaxBoxAcc by its protocol, too; needs OpenCV")
    parser.add_argument("--threads", type=positive, help="torch threads (default: torch's own)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rows there")
    options = parser.parse_args(arguments)
    threads = torch.get_num_threads()
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        with tempfile.TemporaryDirectory() as folder:
            lake = explain(Path(folder), options)
            say(f"explained {sum(sum(commit.images.values()) for commit in lake.commits.values())} images")
            model = load_model(lake)
            found = list(effects(lake, model, make_frame(lake, Settings()).series))
            say(f"measured {len(found)} images and classes")
            rows = rows_of(lake, found, options.boxes != "none", options.wsolevaluation)
            right, images = accuracy(lake)
    except CamlakeError as error:
        print(f"benchmarks.localisation: {error}", file=sys.stderr)
        return 2
    finally:
        torch.set_num_threads(threads)
    print(f"Machine: {machine()}\n{options.model}: {right} of {images} images right ({right / images:.1%})\n")
    print("\n".join(tables(rows)), flush=True)
    if options.json:
        about = {"machine": machine(), "model": options.model, "right": right, "images": images}
        options.json.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A small audit to look at: scenes drawn here, a lake of their maps, and a finding of every kind.

``python -m tests.pipeline.audit.report.example OUT.html`` writes its report.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from PIL import Image, ImageDraw

from pipeline.audit.findings.base import Evidence, image_refs
from pipeline.audit.findings.samples import numbers, where
from pipeline.audit.frame import make_frame
from pipeline.audit.groups import groups_table
from pipeline.audit.objects import open_objects
from pipeline.audit.report import write_report
from pipeline.audit.state import State
from pipeline.audit.unit import add_unit
from pipeline.cam.statistics import statistics
from pipeline.lake import LakeStore, MapSet, MapTargets, UnitResult, create_or_resume, finalize, open_lake
from schemas.audit import AuditManifest, CausalCheck, Finding, ImageRef, Settings
from schemas.documents import LayerInfo, MethodInfo, ModelInfo
from tests.pipeline.lake.helpers import make_manifest, make_plan, sink_for, unit_id

NAMES = (
    "tench",
    "school bus",
    "lighthouse",
    "husky",
    "container ship",
    "espresso",
    "acoustic guitar",
    "hot-air balloon",
    "mailbox",
    "starfish",
)
SITES = ("east", "north", "south")
CAMERAS = ("A", "B", "C")
WIDTH, HEIGHT, GRID = 160, 120, 7
VIEW = (20.0, 0.0, 140.0, 120.0)
#: Classes that lean on a watermark at one site, and on the border.
MARKED, BORDERED = 4, 3
_UNITS, _IMAGES = 4, 280

Maps = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Example:
    """What :func:`pipeline.audit.report.write_report` takes."""

    evidence: Evidence
    findings: list[Finding]
    groups: pa.Table
    manifest: AuditManifest

    def report(self, **options: Any) -> bytes:
        """Return its report."""
        return write_report(self.evidence, self.findings, self.groups, self.manifest, **options)


def make_example(
    folder: Path,
    names: Sequence[str] = NAMES,
    sites: Sequence[str] = SITES,
    prefix: str = "scenes",
    units: int = _UNITS,
    images: int = _IMAGES,
) -> Example:
    """Make the lake in ``folder``, audit it, and say something about it."""
    lake = open_lake(_write_lake(folder, names, sites, prefix, units, images))
    settings = Settings(groups=("site", "camera"), boxes="boxes", bootstrap=100, parts=8)
    frame = make_frame(lake, settings)
    objects = open_objects(frame.settings, lake)
    state = State(frame)
    for unit in lake.commits:
        add_unit(state, lake, unit, objects.source)
    evidence = Evidence(frame, state, lake, state.sample.table)
    findings = _findings(evidence)
    counts = state.counts
    manifest = AuditManifest(
        created="2026-03-01T09:30:00+00:00",
        lake=f"s3://vision/lakes/{prefix}-r50",
        lake_run_id=lake.manifest.run_id,
        lake_finished=True,
        commits_digest="5e" * 32,
        settings=frame.settings,
        method=frame.series[frame.primary].method,
        layer=frame.series[frame.primary].layer,
        units=counts["units"],
        images=counts["images"],
        maps=counts["maps"],
        counted=counts["counted"],
        classes=len(evidence.classes),
        findings=len(findings),
        regions=objects.about,
        versions={"camlake": "0.1.0", "numpy": np.__version__, "torch": torch.__version__},
    )
    return Example(evidence, findings, groups_table(state.maps, frame), manifest)


def _write_lake(folder: Path, names: Sequence[str], sites: Sequence[str], prefix: str, units: int, images: int) -> str:
    store, shards = LakeStore(str(folder / "lake")), folder / "shards"
    shards.mkdir(parents=True)
    plan = make_plan(units)
    model = ModelInfo(
        name="torchvision:resnet50",
        weights="random",
        digest="ab" * 32,
        num_classes=len(names),
        class_names=list(names),
        preprocess={"resize": 120},
        input_size=(120, 120),
        layers=[LayerInfo(name="layer4", channels=8, height=GRID, width=GRID)],
        precision="float32",
    )
    infos = [
        MethodInfo(key=key, name=key, layers=["layer4"], signed=False, parameters={})
        for key in ("grad_cam", "layer_cam")
    ]
    manifest = make_manifest(
        plan, model=model, methods=infos, attributes={"site": "string", "camera": "string", "boxes": "string"}
    )
    manifest = create_or_resume(store, manifest, plan).manifest
    sink = sink_for(store, manifest)
    for number in range(units):
        assert sink.write(_unit(number, shards, names, sites, prefix, images)).ours
    finalize(store)
    return store.uri


def _unit(
    number: int, shards: Path, names: Sequence[str], sites: Sequence[str], prefix: str, images: int
) -> UnitResult:
    rng = np.random.default_rng([7, number])
    unit, shard = unit_id(number), shards / f"{number}.bin"
    label = rng.integers(0, len(names), images)
    wrong = rng.random(images) < 0.12
    predicted = np.where(wrong, (label + 1) % len(names), label)
    site = rng.integers(0, len(sites), images)
    marked = (label == MARKED) & (site == 0) & (rng.random(images) < 0.8)
    at = np.stack([rng.normal(72, 9, images), rng.normal(80, 16, images)], 1) + 14 * np.stack(
        [np.sin(label * 2.1), 2 * np.cos(label * 2.1)], 1
    )
    rows, data = [], io.BytesIO()
    for i in range(images):
        picture = _scene(rng, int(label[i]), at[i], bool(marked[i]))
        offset = data.tell()
        data.write(picture)
        y, x = at[i]
        rows.append(
            {
                "image_id": f"{prefix}/{unit}/{i:05d}.jpg",
                "uri": str(shard),
                "byte_offset": offset,
                "byte_size": len(picture),
                "sha256": hashlib.sha256(picture).digest(),
                "width": WIDTH,
                "height": HEIGHT,
                "decoder": "pillow",
                "label": int(label[i]),
                "label_name": names[label[i]],
                "label_probability": 0.1 if wrong[i] else 0.9,
                "predicted_class": int(predicted[i]),
                "predicted_name": names[predicted[i]],
                "predicted_probability": float(rng.uniform(0.5, 1)),
                **dict(zip(("view_x0", "view_y0", "view_x1", "view_y1"), VIEW, strict=True)),
                "status": "ok",
                "site": sites[site[i]],
                "camera": CAMERAS[i % len(CAMERAS)],
                "boxes": json.dumps([[x - 20, y - 18, x + 20, y + 18]]),
            }
        )
    shard.write_bytes(data.getvalue())
    maps = _maps(rng, predicted, at, marked)
    targets = MapTargets(
        image_index=np.arange(images),
        target_class=predicted.astype(np.int32),
        target_name=[names[each] for each in predicted],
        target_kind=["predicted"] * images,
        target_rank=np.zeros(images, np.int32),
        is_label=(predicted == label).tolist(),
        is_predicted=np.ones(images, np.bool_),
        logit=np.full(images, 5, np.float32),
        probability=np.array([row["predicted_probability"] for row in rows], np.float32),
    )
    sets = []
    for method in ("grad_cam", "layer_cam"):
        mine = maps if method == "grad_cam" else (maps * rng.uniform(0.5, 1, maps.shape)).astype(np.float32)
        sets.append(MapSet(method, "layer4", False, targets, mine, statistics(torch.from_numpy(mine))))
    return UnitResult(unit, "a1", "w0", rows, sets, {"total": 0.1})


def _maps(
    rng: np.random.Generator, target: npt.NDArray[np.int64], at: npt.NDArray[np.float64], marked: npt.NDArray[np.bool_]
) -> Maps:
    centre = (np.arange(GRID) + 0.5) / GRID
    y, x = at[:, 0] / 120, (at[:, 1] - VIEW[0]) / 120
    distance = (centre[:, None] - y[:, None, None]) ** 2 + (centre - x[:, None, None]) ** 2
    maps = np.exp(-distance / 0.02) + rng.uniform(0, 0.12, (len(target), GRID, GRID))
    mark = np.exp(-((centre[:, None] - 0.93) ** 2 + (centre - 0.1) ** 2) / 0.012)
    maps += np.where(marked, 2.2, 0)[:, None, None] * mark
    edge = np.maximum(np.abs(centre[:, None] - 0.5), np.abs(centre - 0.5)) > 0.4
    maps += np.where(target == BORDERED, 0.55, 0)[:, None, None] * edge
    maps[0] = 0
    return maps.astype(np.float32)


def _scene(rng: np.random.Generator, label: int, at: npt.NDArray[np.float64], marked: bool) -> bytes:
    """A JPEG: a horizon, an object whose shape and colour go with the class, and perhaps a mark in the corner."""
    hue = np.array(
        [[128, 160, 190], [184, 164, 132], [144, 178, 148], [190, 196, 204], [120, 166, 196]][label % 5], np.float64
    )
    shade = np.linspace(1.25, 0.8, HEIGHT)[:, None, None] * hue + rng.normal(0, 6, (HEIGHT, WIDTH, 3))
    horizon = int(rng.integers(60, 95))
    shade[horizon:] = shade[horizon:] * 0.72 + 14
    picture = Image.fromarray(np.clip(shade, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    y, x = at
    colour = [(226, 196, 64), (208, 92, 48), (238, 238, 230), (96, 84, 80), (160, 56, 60), (74, 48, 34)][label % 6]
    box = [x - 17, y - 14, x + 17, y + 14]
    if label % 3 == 0:
        draw.ellipse(box, fill=colour, outline=(20, 20, 20))
    elif label % 3 == 1:
        draw.rounded_rectangle(box, 5, fill=colour, outline=(20, 20, 20))
        for wheel in (x - 9, x + 9):
            draw.ellipse([wheel - 4, y + 10, wheel + 4, y + 18], fill=(25, 25, 25))
    else:
        draw.polygon([(x, y - 18), (x + 16, y + 14), (x - 16, y + 14)], fill=colour, outline=(20, 20, 20))
    if marked:
        draw.rectangle([24, 104, 62, 117], fill=(250, 250, 250))
        draw.text((27, 104), "PHOTO", fill=(200, 30, 40))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _best(evidence: Evidence, target: int, measure: str, note: str, most: int = 24) -> tuple[ImageRef, ...]:
    sample = evidence.sample
    rows = where(sample, numbers(sample, "target_class") == target)
    order = np.argsort(-np.nan_to_num(numbers(rows, measure)), kind="stable")
    return image_refs(rows.take(pa.array(order)), note, most)


def _findings(evidence: Evidence) -> list[Finding]:
    """One finding of each kind, with numbers that the lake bears out in kind."""
    name = evidence.frame.name
    site = evidence.state.maps.values(evidence.frame.primary, "site")[0]
    zone = np.zeros((14, 14))
    zone[11:, :4] = 1
    used = CausalCheck(images=40, change=-0.34, control=-0.05, low=-0.37, high=-0.21, used=True)
    unused = CausalCheck(images=40, change=-0.02, control=-0.03, low=-0.02, high=0.04, used=False)

    def finding(kind: str, target: int | None, severity: float, title: str, sentence: str, **more: Any) -> Finding:
        images = more.pop("images", None)
        if images is None and target is not None:
            images = _best(evidence, target, "border_enrichment", "")
        return Finding(
            finding_id=more.pop("finding_id", f"{kind}:{target}"),
            kind=kind,
            title=title,
            sentence=sentence,
            severity=severity,
            target_class=target,
            target_name=None if target is None else name(target),
            images=images or (),
            n=more.pop("n", 155),
            **more,
        )

    a, b, c, d = (each % len(evidence.classes) for each in (MARKED, BORDERED, 1, 2))
    return [
        finding(
            "shortcut",
            a,
            93.0,
            f"Shortcut candidate for '{name(a)}' with site = {site}: something at the lower left corner",
            f"In 78.0% of the images of '{name(a)}' with site = {site} the model looks at the lower left corner, which "
            "it does in 3.1% of the other images of this class (25.2 times as often): what is seen there may stand in "
            "for the object.",
            remedy="Look at the images. Where a mark, a logo or a frame goes with the class, cover it or collect "
            "images without it, train again, and compare the audits.",
            attribute="site",
            value=site,
            effect=25.2,
            effect_name="ratio",
            low=11.9,
            high=53.0,
            p=1e-30,
            q=4e-28,
            n=41,
            reference_n=114,
            causal=used,
            images=_best(evidence, a, "corner_enrichment", "58% of the evidence in the lower left corner"),
            details={
                "where": "the lower left corner",
                "zone": zone.tolist(),
                "share": 0.78,
                "tests": 214,
                "held": True,
            },
        ),
        finding(
            "group_difference",
            a,
            71.0,
            f"'{name(a)}': less evidence on the object where site = {site}",
            f"Where site = {site}, 31% of the evidence for '{name(a)}' lies on the object, and 58% elsewhere; objects "
            "of one size compared.",
            remedy="See what differs between the sites' images, and whether the label depends on it.",
            attribute="site",
            value=site,
            measure="energy",
            effect=-0.27,
            effect_name="difference",
            low=-0.33,
            high=-0.21,
            q=1e-7,
            n=102,
            reference_n=311,
            details={"d": -1.32, "split_half": True},
        ),
        finding(
            "border",
            b,
            58.0,
            f"'{name(b)}': evidence along the edges",
            f"72% of the evidence for '{name(b)}' lies within a tenth of the picture from its edge, where a map "
            "without any preference would have 36%.",
            remedy="Look for frames, captions or padding that go with the class.",
            measure="border_enrichment",
            effect=2.0,
            effect_name="ratio",
            low=1.9,
            high=2.1,
            q=1e-9,
            reference_n=1400,
        ),
        finding(
            "off_object",
            b,
            47.0,
            f"'{name(b)}': most evidence off the object",
            f"23% of the evidence for '{name(b)}' lies on the object, which covers 10% of the view.",
            measure="energy",
            effect=0.23,
            effect_name="share",
            low=0.21,
            high=0.25,
            q=0.0004,
        ),
        finding(
            "shortcut",
            c,
            41.0,
            f"Shortcut candidate for '{name(c)}': something at the upper edge",
            f"In 22.0% of the images of '{name(c)}' the model looks at the upper edge, which it does in 9.5% of the "
            "images of other classes (2.3 times as often).",
            effect=2.3,
            effect_name="ratio",
            low=1.6,
            high=3.4,
            q=0.011,
            causal=unused,
            details={"causal_unused": True, "causal_scale": "log-odds"},
        ),
        finding(
            "wrong_reason",
            a,
            36.0,
            f"'{name(a)}': right, sure, and off the object",
            "34 predictions are right with a probability of 90% or more, and less than a tenth of their evidence lies "
            "on the object.",
            effect=0.16,
            effect_name="share",
            low=0.12,
            high=0.21,
            n=34,
        ),
        finding(
            "label_suspect",
            d,
            28.0,
            f"'{name(d)}': 12 labels to look at",
            "The model is sure of another class and looks at the object.",
            effect=12.0,
            effect_name="count",
            n=12,
        ),
        finding(
            "novelty",
            d,
            19.0,
            f"'{name(d)}': maps unlike the others",
            "9 maps lie where maps of this class hardly ever do.",
            effect=9.0,
            effect_name="count",
            n=9,
        ),
        finding(
            "image_property",
            c,
            18.0,
            f"'{name(c)}': files are larger",
            "The images of this class hold more bytes per pixel than others.",
            effect=0.45,
            effect_name="d",
            low=0.31,
            high=0.59,
            q=0.002,
            reference_n=1400,
        ),
        finding(
            "disagreement",
            None,
            12.0,
            "Two methods differ",
            "Their maps of one image correlate by 0.41 on average.",
            n=1500,
        ),
        finding(
            "degenerate",
            None,
            8.0,
            "6 maps say nothing",
            "They are zero or constant.",
            effect=6.0,
            effect_name="count",
            n=6,
        ),
        finding(
            "duplicates",
            None,
            6.0,
            "4 images occur twice",
            "Their files are the same.",
            effect=4.0,
            effect_name="count",
            n=4,
        ),
    ]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        Path(sys.argv[1]).write_bytes(make_example(Path(made)).report())

"""Labels made of the maps of a lake, without a model: the worker that the engine's dispatcher talks to.

A map covers the view, the part of the picture that the model was shown. Labels are made there, as the other job makes
them of the whole picture, and the rest is ignored: nothing is known of it, and background would be a claim.
"""

from __future__ import annotations

import math
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import torch
from torch import Tensor

from pipeline.engine import watchdog
from pipeline.engine.clock import StageClock
from pipeline.engine.outcome import Outcome, Progress, WorkerInfo
from pipeline.engine.worker import gpu_memory
from pipeline.lake import Lake, LakeStore
from pipeline.lake.originals import Originals
from pipeline.lake.reader import view_of
from pipeline.pseudolabels.classes import manifest_classes
from pipeline.pseudolabels.crf import CrfRunner
from pipeline.pseudolabels.encode import Encoder
from pipeline.pseudolabels.label import Stack, class_maps, image_labels, pixels_of, refined_by_pamr, stacks
from pipeline.pseudolabels.labels import ImageLabels
from pipeline.pseudolabels.names import mask_names, mirrors
from pipeline.pseudolabels.result import LabelledImage, LabelResult, Spool
from pipeline.pseudolabels.seeds import uses_gradients
from pipeline.pseudolabels.sink import LabelSink
from pipeline.pseudolabels.sizes import Sizes, resized
from pipeline.pseudolabels.stored import selected
from pipeline.pseudolabels.view_part import Map, laid, part_in_view, within
from pipeline.sources.decode import DecodeError, decode
from schemas.documents import Manifest
from schemas.errors import CamlakeError, InputError, LakeError
from schemas.job import Job
from schemas.label_job import LabelJob
from schemas.pseudolabels import CrfRefinement, NoRefinement, PamrRefinement
from schemas.registries import METHODS, implementation
from schemas.unit import Unit

#: What can go wrong with one picture.
_FAULTS = (CamlakeError, OSError, ValueError, SyntaxError)


class StoredMapsWorker:
    """Turns the maps of a unit into labels and commits them.

    Args:
        job: of labels, with ``stored``.
        manifest: of the lake of labels.
        name: the worker's name, as commits record it.
        device: torch device of the refinement; None takes the GPU that Ray assigned, or else the CPU.
    """

    def __repr__(self) -> str:
        """What Ray puts before the lines that it forwards from here."""
        return self.name

    def __init__(self, job: Job, manifest: Manifest, name: str, device: str | None = None) -> None:
        if not isinstance(job, LabelJob) or job.stored is None:
            raise TypeError("labels of stored maps are made by a LabelJob that names them")
        self.job, self.manifest, self.name = job, manifest, name
        self.stored = job.stored
        self.settings = job.pseudo_labels
        self._device = device or ("cuda" if job.workers.gpus > 0 else "cpu")
        self._busy = threading.Lock()
        self._images_done = self._written = 0
        self._current: tuple[str, float, StageClock] | None = None
        self._watchdog = watchdog.Watchdog(job.workers.stall_seconds)

    def start(self) -> WorkerInfo:
        """Open the lakes.

        Raises:
            InputError: another lake lies where the maps were, or a package is missing.
            LakeError: it is damaged.
            AccessError: a store cannot be used.
        """
        if self._device == "cpu":
            torch.set_num_threads(self.job.compute.threads or max(1, int(self.job.workers.cpus)))
        self.lake = Lake(LakeStore(self.stored.uri, self.stored.storage_options))
        self.originals = Originals(self.lake, self.job.source.storage_options, most_read=None)
        if self.lake.manifest.run_id != self.stored.run_id:
            raise InputError(
                f"--from: {self.stored.uri} is the lake of another run ({self.lake.manifest.run_id}) than the one that "
                f"the labels were begun with ({self.stored.run_id}); give another output.uri"
            )
        self.classes = manifest_classes(self.manifest)
        self.encoder = Encoder(self.settings.files, self.classes)
        refine = self.settings.refine
        self.crf = CrfRunner(refine) if isinstance(refine, CrfRefinement) else None
        self.sizes = Sizes((1.0,), self.settings.max_pixels, 1)
        self.sink = LabelSink(self.job.output, self.manifest)
        info = self.manifest.methods[0]
        # As the other job does, so that the constant under the maximum weighs the same.
        self._by_cells = "+" not in self.stored.layer and uses_gradients(
            implementation(METHODS, "method", info.name).METHOD
        )
        return WorkerInfo(self.name, socket.gethostname(), self._device, os.getpid())

    def process(self, unit: Unit, attempt: str, careful: bool = False) -> Outcome:
        """Label every image of ``unit`` and commit the result; returns what the commit says.

        Args:
            unit: of the plan.
            attempt: the attempt's id.
            careful: has no meaning here: the pictures were decoded once before.

        Raises:
            LakeError: the lake gave the unit up, or is damaged.
        """
        clock, began = StageClock(), time.perf_counter()
        with self._busy:
            self._images_done, self._current = 0, (unit.unit_id, time.monotonic(), clock)
            spool = Spool()
            try:
                result = self._result(unit.unit_id, attempt, clock, spool)
                clock.add("total", time.perf_counter() - began)
                commit = self.sink.write(replace(result, seconds=clock.seconds())).commit
                self._written += 1
            finally:
                spool.close()
                self._current, self._images_done = None, 0
        return Outcome(
            unit_id=unit.unit_id,
            attempt=commit.attempt,
            worker=commit.worker,
            images=commit.images,
            maps=commit.maps,
            bytes=sum(item.size for item in commit.objects),
            seconds=dict(commit.seconds),
        )

    def _result(self, unit: str, attempt: str, clock: StageClock, spool: Spool) -> LabelResult:
        if unit not in self.lake.commits:
            raise LakeError(f"{self.stored.uri} gave unit {unit} up and has no maps of it; see its quarantine record")
        with clock.measure("read"):
            rows = self.lake.unit_images(unit).to_pylist()
            maps = self._maps(unit)
        flags: Counter[str] = Counter(all_zero=0, not_finite=0)
        names = mask_names([row["image_id"] for row in rows], mirrored=mirrors(self.job.source))
        done: dict[int, LabelledImage] = {}
        sound = []
        for place, (row, name) in enumerate(zip(rows, names, strict=True)):
            if row["status"] == "ok" and name.stem is None:
                row |= {"status": "name_error", "error": name.reason}
            if row["status"] == "ok":
                sound.append(place)
        self._images_done += len(rows) - len(sound)
        places = {rows[place]["image_id"]: place for place in sound}
        for image_id, data in self._pictures(unit, [rows[place] for place in sound]):
            place = places.pop(image_id)
            row, stem = rows[place], names[place].stem
            assert stem is not None
            self._images_done += 1
            try:
                with clock.measure("decode"):
                    pixels = self._pixels(row, data)
            except _FAULTS as error:
                status = "decode_error" if isinstance(error, DecodeError) else "read_error"
                row |= {"status": status, "error": str(error) or type(error).__name__}
                continue
            labels = self._labels(place, row, maps.get(image_id, []), pixels, flags, clock)
            with clock.measure("write"):
                done[place] = self.encoder(labels, image_id, stem, spool)
        compute = {"batch_size": 1, "mask_batch": 0}
        labelled = [done[place] for place in sorted(done)]
        return LabelResult(
            unit, attempt, self.name, rows, (), {}, compute, labels=labelled, flags=dict(flags), spool=spool
        )

    def _maps(self, unit: str) -> dict[str, list[tuple[int, str, float, Map]]]:
        """Return (class, reason, probability, raw map) of the classes of each image."""
        table = self.lake.unit_maps(unit)
        key = self.manifest.methods[0].key
        table = table.filter((pc.field("method") == key) & (pc.field("layer") == self.stored.layer))
        table, kinds = selected(table, self.job.targets, self.lake.manifest)
        if not len(table):
            return {}
        values = self.lake.stored_maps(table)
        if self._by_cells:
            values *= values.shape[1] * values.shape[2]
        columns = (table[name].to_pylist() for name in ("image_id", "target_class", "probability"))
        found: dict[str, list[tuple[int, str, float, Map]]] = {}
        for image_id, target, probability, kind, each in zip(*columns, kinds, values, strict=True):
            found.setdefault(image_id, []).append((target, kind, probability, each))
        return found

    def _pictures(
        self, unit: str, rows: Sequence[Mapping[str, Any]]
    ) -> Iterator[tuple[str, bytes | CamlakeError | None]]:
        """Yield the pictures that the refinement needs, or None where it needs none."""
        if isinstance(self.settings.refine, NoRefinement):
            yield from ((row["image_id"], None) for row in rows)
        else:
            for row, data in self.originals.stream(rows):
                yield row["image_id"], data

    def _pixels(self, row: Mapping[str, Any], data: bytes | CamlakeError | None) -> Tensor | None:
        """Return the picture (3, H, W) uint8 where one is needed.

        Raises:
            LakeError, DecodeError, ...: it cannot be had, or is not what it was.
        """
        if data is None:
            return None
        if isinstance(data, CamlakeError):
            raise data
        pixels = decode(data, exif=self.job.model.preprocess.exif).pixels
        if tuple(pixels.shape[1:]) != (row["height"], row["width"]):
            raise LakeError(f"image '{row['image_id']}' has another size than in the run; has its file changed?")
        return pixels

    def _labels(
        self,
        place: int,
        row: Mapping[str, Any],
        maps: Sequence[tuple[int, str, float, Map]],
        pixels: Tensor | None,
        flags: Counter[str],
        clock: StageClock,
    ) -> ImageLabels:
        view, size = view_of(row), (row["height"], row["width"])
        part = part_in_view(view, *size)
        base = self.sizes.base(*part.size)
        with clock.measure("compute"):
            targets = [target for target, *_ in maps]
            sums = torch.from_numpy(
                np.stack([laid(values, view, part, base) for *_, values in maps])
                if maps
                else np.zeros((0, *base), np.float32)
            ).to(self._device)
            largest = [float(np.max(values)) for *_, values in maps]
            flags["not_finite"] += sum(not math.isfinite(each) for each in largest)
            flags["all_zero"] += sum(each <= 0 for each in largest)
            found = class_maps(
                sums, targets, [kind for _, kind, *_ in maps], [chance for *_, chance, _ in maps], self.classes
            )
        with clock.measure("refine"):
            competing = stacks(found.maps, self.settings.background)
            if pixels is not None and found.classes:
                image = resized(pixels[:, part.y0 : part.y1, part.x0 : part.x1], base)
                competing = self._refined(image, competing)
            labels = image_labels(
                place, part.size, found.classes, competing, self.classes, soft=self.settings.files.soft
            )
        return within(labels, part, size, self.classes.ignore)

    def _refined(self, image: Tensor, competing: list[Stack]) -> list[Stack]:
        if isinstance(self.settings.refine, PamrRefinement):
            shown = image.to(self._device).to(torch.float32).div_(255)
            return refined_by_pamr([shown], [competing], self.settings.refine)[0]
        assert self.crf is not None
        return [_stack(self.crf(pixels_of(image), stack.scores().cpu().numpy())) for stack in competing]

    def progress(self) -> Progress:
        """Say what is going on; see :meth:`pipeline.engine.worker.AttributionWorker.progress`."""
        current = self._current
        memory = gpu_memory(torch.device("cuda")) if self._device == "cuda" else None
        if current is None:
            found = Progress(0, (self._written,), gpu_memory=memory)
        else:
            unit, since, clock = current
            mark = (self._written, self._images_done, sum(clock.seconds().values()), since)
            found = Progress(self._images_done, mark, unit, time.monotonic() - since, memory)
        self._watchdog.see(found.mark, current is not None)
        return found

    def stack(self) -> str:
        """Return what each thread is doing, for the log of whoever ends this worker."""
        return watchdog.stacks()


def _stack(scores: npt.NDArray[np.float32]) -> Stack:
    found: Tensor = torch.from_numpy(scores)
    return Stack(found[0], found[1:])

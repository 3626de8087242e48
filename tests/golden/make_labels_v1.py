"""Writes the golden lake of labels of format version 1, ``tests/golden/labels-v1``.

It was run once, with the release that first wrote this format, and is kept to show how the lake was made. Do not run it
again to make a test pass: a reader that fails on the golden lake has broken the format.

    python -m tests.golden.make_labels_v1 FOLDER

The pictures lie in fsspec's memory while the job runs, and paths are relative to FOLDER, so that no place of a machine
is kept.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import fsspec
import numpy as np
import torch
from PIL import Image

from jobs.config import parse_label_job
from jobs.demo.network import DigitNet
from jobs.demo.scenes import make_scenes
from jobs.demo.train import save_weights
from pipeline.pseudolabels.png import encode_index
from tests.pipeline.pseudolabels.conftest import run_inline

CLASSES = {"one": 3, "two": 7}


def main(folder: str) -> None:
    """Write pictures, true masks (of another threshold: what is measured needs no meaning) and the lake."""
    Path(folder).mkdir(parents=True)
    os.chdir(folder)
    for number, scene in enumerate(make_scenes(4, split="test", seed=5)):
        path = Path("images") / ("one", "two")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene.pixels).resize((40 - 4 * number, 32)).save(path)
    Path("images/two/broken.png").write_bytes(b"no picture")
    fsspec.filesystem("memory").put("images", "/golden/images", recursive=True)
    torch.manual_seed(3)
    save_weights(DigitNet(10, [4, 6, 8, 8]), Path("net.safetensors"), 96)
    run_inline(
        parse_label_job(
            {
                "source": {"uri": "memory://golden/images", "format": "folder", "unit_images": 3},
                "model": {
                    "name": "jobs.demo.network:digit_net",
                    "weights": "net.safetensors",
                    "options": {"widths": [4, 6, 8, 8]},
                },
                "targets": "label",
                "methods": ["grad_cam"],
                "output": {"uri": "lake"},
                "pseudo_labels": {
                    "scales": [1.0, 0.5],
                    "background": {"threshold": 0.4},
                    "refine": {"iterations": 2, "dilations": [1, 3]},
                    "classes": [
                        {"id": value, "name": f"class {name}", "classes": [name]} for name, value in CLASSES.items()
                    ],
                    "files": {"soft": True, "confidence": True, "rle": "component"},
                },
            }
        )
    )
    for path in sorted(Path("lake/soft").rglob("*.npz")):
        with np.load(path) as archive:
            scores, ids = archive["scores"].astype(np.float32), archive["ids"]
        scores[0] = 0.5
        mask = Path("truth") / path.relative_to("lake/soft").with_suffix(".png")
        mask.parent.mkdir(parents=True, exist_ok=True)
        mask.write_bytes(encode_index(ids[scores.argmax(0)].astype(np.uint8)))
    Path("truth/classes.json").write_text(json.dumps({str(value): f"class {name}" for name, value in CLASSES.items()}))
    Path("net.safetensors").unlink()


if __name__ == "__main__":
    main(sys.argv[1])

"""The faithfulness benchmark, on a network and images made here."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks import faithfulness as benchmark
from benchmarks.exactness import generated_images
from pipeline.attributor import Attributor
from pipeline.cam.faithfulness import faithfulness, scaled_masks
from pipeline.models import load_replica
from schemas.job import Model, Preprocess

NET = "tests.pipeline.cam.nets:GapNet"


def test_mean_and_standard_error_leave_out_what_is_undefined() -> None:
    mean, error = benchmark.mean_and_error([1.0, 2.0, math.nan, 6.0])
    assert mean == 3.0
    assert error == pytest.approx(math.sqrt(7 / 3))
    assert math.isnan(benchmark.mean_and_error([1.0])[1])
    assert math.isnan(benchmark.mean_and_error([math.nan])[0])


def test_differences_are_paired() -> None:
    values = {
        "score_cam (authors)": {name: [0.1, 0.9] for name in benchmark.MEASURES},
        "other": {name: [0.2, 1.0] for name in benchmark.MEASURES},
    }
    results = benchmark.Results(values=values, full=[1.0, 1.0])
    assert results.against("other", "score_cam (authors)", "drop") == pytest.approx((0.1, 0.0))
    assert results.mean("other", "drop") == pytest.approx((0.6, 0.4))
    lines = benchmark.table(results)
    assert "60.0 ± 40.0" in next(line for line in lines if line.startswith("other"))
    assert "+10.0 ± 0.0" in [line for line in lines if line.startswith("other")][1]


def test_equal_maps_are_measured_once() -> None:
    masks = torch.rand(2, 3, 3)
    equal = torch.stack([masks[0], masks[1], masks[0] + 1e-6, masks[1], 1 - masks[0]])
    assert benchmark._first_of_equals(equal) == [0, 1, 0, 1, 4]


def test_twins_are_equal_on_every_image() -> None:
    results = benchmark.Results()
    labels = ["cam", "grad_cam", "hires_cam", "layer_cam"]
    for full, first in enumerate([[0, 1, 1, 1], [0, 0, 0, 3]], 1):
        results.full = [1.0] * full
        results.keep_twins(labels, first)
    # On the second image CAM was nowhere negative, so it is grad_cam's map, too.
    assert results.twins == {"hires_cam": "grad_cam"}


def test_figures_are_those_of_the_measures_on_the_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figures.json"
    torch.manual_seed(0)  # the untrained weights
    arguments = ["--model", NET, "--count", "2", "--size", "24", "--steps", "4", "--batch", "5", "--json", str(path)]
    assert benchmark.main(arguments) == 0
    output = capsys.readouterr().out
    assert "mean nothing" in output
    document = json.loads(path.read_text())
    assert len(document["full"]) == 2
    # Behind global average pooling these are one map each.
    assert document["same_maps"] == {
        "smooth_grad_cam_pp": "grad_cam_pp",
        "hires_cam": "grad_cam",
        "xgrad_cam": "grad_cam",
    }
    assert {f"score_cam ({name})" for name in ("authors", "grad_cam", "torchcam", "paper")} <= set(document["values"])

    torch.manual_seed(0)
    replica = load_replica(
        Model(name=NET, weights="random", preprocess=Preprocess(crop=24, resize=24, mean=(0, 0, 0), std=(1, 1, 1)))
    )
    images = generated_images(2, (24, 24))
    last = Attributor(replica.model, [{"name": "score_cam", "convention": "paper"}], layers=replica.layers)
    for number, image in enumerate(images):
        result = last(image)
        target = int(result.selection.target[0])
        expected = faithfulness(
            lambda x, target=target: replica.model(x).softmax(1)[:, target],  # type: ignore[misc]
            image,
            scaled_masks(result["score_cam"], (24, 24)),
            steps=4,
        )
        found = document["values"]["score_cam (paper)"]
        assert document["full"][number] == pytest.approx(expected.full, rel=1e-5)
        for name in benchmark.MEASURES:
            assert found[name][number] == pytest.approx(float(getattr(expected, name)), rel=1e-4, abs=1e-6)


def test_wrong_input_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["--model", "torchvision:resnet81"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert "resnet81" in errors[0]
    with pytest.raises(SystemExit, match="2"):
        benchmark.main(["--count", "0"])

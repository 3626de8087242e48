"""Methods and their layers; what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.attributor import Attributor
from pipeline.cam.plan import as_spec
from schemas.errors import InputError
from schemas.methods import MethodSpec, ScoreCAMSpec, SmoothGradCAMppSpec
from schemas.registries import METHODS
from tests.pipeline.cam import nets


def attributor(methods: list[Any], kind: str = "gap", *, head: bool = True, layers: int = 2) -> Attributor:
    model = nets.make(kind)
    given = model.head() if kind == "gap" and head else None
    return Attributor(model, methods, layers=nets.target_layers(model)[2 - layers :], head=given)


def test_every_registered_method_is_planned_with_its_sign() -> None:
    infos = attributor(list(METHODS)).method_infos()
    assert [info.key for info in infos] == list(METHODS)
    assert {info.key for info in infos if info.signed} == {"cam", "eigen_cam"}
    layers = {info.key: info.layers for info in infos}
    assert layers.pop("cam") == ["features"]
    assert all(each == ["stem", "features"] for each in layers.values())


def test_specifications_from_names_mappings_and_objects() -> None:
    assert isinstance(as_spec("score_cam"), ScoreCAMSpec)
    assert as_spec({"name": "smooth_grad_cam_pp", "samples": 3}).samples == 3
    assert isinstance(as_spec(MethodSpec(name="smooth_grad_cam_pp", label="s")), SmoothGradCAMppSpec)
    kept = ScoreCAMSpec(name="score_cam", convention="paper", label="p")
    assert as_spec(kept) == kept


def test_manifest_entry_of_a_fusion() -> None:
    spec = {"name": "score_cam", "label": "s", "fuse": "tanh_max", "convention": "torchcam", "align_corners": True}
    info = attributor([spec]).method_infos()[0]
    assert (info.key, info.name, info.layers) == ("s", "score_cam", ["stem+features"])
    assert info.parameters == {
        "fuse": "tanh_max",
        "convention": "torchcam",
        "score": "logit",
        "weight": "softmax",
        "normalise": "before",
        "align_corners": True,
        "budget": None,
        "expected_correlation": 0.98,
    }


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ([], "methods: none is given"),
        (["gradcam"], "'gradcam' is unknown .did you mean grad_cam"),
        ([{"name": "score_cam", "convention": "author"}], "convention"),
        ([{"name": "smooth_grad_cam_pp", "samples": 0}], "samples"),
        (["grad_cam", "grad_cam"], "'grad_cam' appears twice; give one of them a 'label'"),
        ([{"name": "cam", "fuse": "max"}], "nothing to fuse"),
        ([{"name": "cam", "layers": ["stem"]}], "'features', and no other .stem"),
        ([{"name": "cam", "layers": ["stem", "features"]}], "'features', and no other"),
        ([{"name": "grad_cam", "layers": ["stem"], "fuse": "max"}], "fuse: max needs two layers or more, and has stem"),
    ],
)
def test_what_is_refused(methods: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        attributor(methods)


def test_cam_without_a_linear_head_names_grad_cam() -> None:
    with pytest.raises(
        InputError, match=r"global average pooling and one linear layer, and .*conv2.* is not; use grad_cam"
    ):
        attributor(["cam"], "inplace")

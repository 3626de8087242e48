"""Models by name, and one sentence for every name or option that is wrong."""

from __future__ import annotations

import sys

import pytest
import torch
import torchvision
from torch import nn

from pipeline.models.factory import ModelName, build, parse_name, timm_tags, torchvision_weights
from schemas.errors import InputError


def test_names() -> None:
    assert parse_name("torchvision:resnet18") == ModelName("torchvision", "resnet18")
    assert parse_name("timm:resnet18.a1_in1k") == ModelName("timm", "resnet18.a1_in1k")
    assert parse_name("my.nets:Net") == ModelName("factory", "Net", "my.nets")


@pytest.mark.parametrize("name", ["resnet18", ":x", "torchvision:", ""])
def test_name_of_no_form(name: str) -> None:
    with pytest.raises(InputError, match=r"write torchvision:NAME, timm:NAME or package.module:factory"):
        parse_name(name)
    if name == "resnet18":
        with pytest.raises(InputError, match="did you mean torchvision:resnet18"):
            parse_name(name)


@pytest.mark.parametrize("name", ["torchvision:squeezenet1_1", "timm:test_resnet"])
def test_construction_is_reproducible_and_leaves_the_random_state(name: str) -> None:
    before = torch.random.get_rng_state()
    a = build(parse_name(name), {"num_classes": 7})
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    b = build(parse_name(name), {"num_classes": 7})
    assert not a.training
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    with torch.no_grad():
        assert a(torch.zeros(1, 3, 64, 64)).shape == (1, 7)


def test_unknown_names_list_near_ones() -> None:
    with pytest.raises(InputError, match=r"torchvision has no classification model 'resnt18' \(did you mean resnet18"):
        build(parse_name("torchvision:resnt18"), {})
    with pytest.raises(InputError, match=r"timm has no model 'resnt18' \(did you mean .*resnet18"):
        build(parse_name("timm:resnt18"), {})
    with pytest.raises(InputError, match="no classification model 'fcn_resnet50'"):
        torchvision_weights("fcn_resnet50")  # segments, does not classify


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:resnet18"])
@pytest.mark.parametrize("options", [{"num_clases": 3}, {"num_classes": "three"}])
def test_bad_options(name: str, options: dict) -> None:
    with pytest.raises(InputError, match=r"model\.options .* do not fit .*resnet18") as caught:
        build(parse_name(name), options)
    assert "\n" not in str(caught.value)


def test_timm_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"pip install 'camlake\[timm\]'"):
        build(parse_name("timm:resnet18"), {})


def test_timm_tags_begin_with_the_default() -> None:
    assert timm_tags("resnet18")[0] == "a1_in1k"
    assert "tv_in1k" in timm_tags("resnet18.a2_in1k")


def test_named_weights_of_other_classes_are_refused_before_any_download() -> None:
    with pytest.raises(InputError, match=r"num_classes is 5 but the weights 'a1_in1k' of timm:resnet18 have 1000"):
        build(parse_name("timm:resnet18"), {"num_classes": 5}, weights="a1_in1k")
    with pytest.raises(InputError, match=r"model\.options .*num_classes.* do not fit torchvision:resnet18"):
        build(parse_name("torchvision:resnet18"), {"num_classes": 5}, weights="IMAGENET1K_V1")


def test_no_network_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_args: object, **_kwargs: object) -> None:
        raise OSError("<urlopen error [Errno -2] Name or service not known>")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", offline)
    with pytest.raises(
        InputError, match=r"weights 'DEFAULT' of torchvision:resnet18 could not be fetched .*give its URI"
    ):
        build(parse_name("torchvision:resnet18"), {}, weights="DEFAULT")


def test_named_weights_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    state = torchvision.models.squeezenet1_1(weights=None).state_dict()
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", lambda *_args, **_kwargs: state)
    model = build(parse_name("torchvision:squeezenet1_1"), {}, weights="DEFAULT")
    assert torch.equal(model.state_dict()["features.0.weight"], state["features.0.weight"])


def test_inception_takes_its_own_weights_normalisation() -> None:
    assert build(parse_name("torchvision:googlenet"), {}, adapt_input=True).transform_input
    assert not build(parse_name("torchvision:googlenet"), {}).transform_input
    assert not build(parse_name("torchvision:googlenet"), {"transform_input": False}, adapt_input=True).transform_input


def test_factory(factories: str) -> None:
    model = build(parse_name(f"{factories}:tiny"), {"num_classes": 3})
    assert isinstance(model, nn.Module)
    assert not model.training
    assert model.fc.out_features == 3


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("camlake_no_such_module:f", {}, "'camlake_no_such_module' cannot be imported .*PYTHONPATH"),
        ("camlake_test_broken:f", {}, "cannot be imported .ZeroDivisionError: division by zero"),
        ("{}:tinny", {}, r"has no 'tinny' \(did you mean (Tiny|tiny)"),
        ("{}:NUMBER", {}, "is a int, which cannot be called"),
        ("{}:no_module", {}, "returned dict; let it return a torch.nn.Module"),
        ("{}:broken", {}, "failed with model.options .* .OSError: no such thing"),
        (
            "{}:tiny",
            {"classes": 3},
            r"model\.options .*'classes': 3.* do not fit .*unexpected keyword argument 'classes'",
        ),
    ],
)
def test_wrong_factories(factories: str, name: str, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(parse_name(name.format(factories)), options)

"""The job file: what is accepted, what is refused and how the refusal reads."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.config import load_job, parse_job
from schemas.errors import InputError
from schemas.job import Job


def document(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "source": {"uri": "train-{0..3}.tar", "format": "webdataset", "label": "cls"},
        "model": {"name": "torchvision:resnet18", "weights": "random"},
        "methods": ["grad_cam"],
        "output": {"uri": "lake"},
    }
    return base | changes


def test_short_forms_mean_the_long_ones() -> None:
    short = parse_job(document(targets="label", methods=["grad_cam", "score_cam"]))
    long = parse_job(document(targets={"label": True}, methods=[{"name": "grad_cam"}, {"name": "score_cam"}]))
    assert short == long
    assert short.methods[1].name == "score_cam"
    assert short.targets.label and not short.targets.predicted


def test_the_prediction_is_the_default_target() -> None:
    assert parse_job(document()).targets.predicted


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": ["grad_camm"]}, ["methods.0", "'grad_camm' is unknown", "grad_cam"]),
        ({"methods": [{"name": "score_cam", "conventon": "paper"}]}, ["methods.0", "'conventon'", "convention"]),
        ({"methods": [{"name": "grad_cam", "samples": 3}]}, ["methods.0", "unknown key 'samples'"]),
        (
            {"methods": [{"name": "smooth_grad_cam_pp", "samples": 0}]},
            ["methods.0.samples", "greater than or equal to 1"],
        ),
        ({"methods": ["grad_cam", "grad_cam"]}, ["'grad_cam' appears twice", "label"]),
        ({"methods": []}, ["methods", "at least 1"]),
        ({"soruce": {}}, ["unknown key 'soruce'", "source"]),
        ({"source": {"uri": "x", "format": "webdatset"}}, ["source.format", "webdataset"]),
        (
            {"source": {"uri": "x", "format": "list", "attributes": ["width"]}},
            ["source.attributes", "'width'", "rename it"],
        ),
        ({"source": {"uri": "x", "format": "list", "attributes": ["a", "a"]}}, ["'a' is named twice"]),
        ({"targets": {"top_k": 0}}, ["targets.top_k"]),
        ({"targets": {}}, ["targets", "no target is asked for"]),
        ({"targets": "lable"}, ["targets", "unknown key 'lable'", "label"]),
        ({"workers": {"min": 4, "max": 2}}, ["workers", "max (2) is below min (4)"]),
        ({"output": {}}, ["output.uri is missing"]),
        (
            {"source": {"uri": "x", "format": "list"}, "targets": "label"},
            ["targets.label asks for labels", "source.label"],
        ),
    ],
)
def test_wrong_jobs_are_refused_in_one_sentence(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        parse_job(document(**changes), "my.yaml")
    message = str(caught.value)
    assert message.startswith("job file 'my.yaml': ")
    assert "\n" not in message
    for word in words:
        assert word in message


def test_the_digest_depends_on_the_content_of_the_lake_only() -> None:
    job = parse_job(document())
    same = parse_job(document(workers={"max": 8}, compute={"batch_size": 3}, output={"uri": "elsewhere"}))
    assert same.digest() == job.digest()
    for changes in (
        {"targets": {"top_k": 2}},
        {"methods": ["layer_cam"]},
        {"compute": {"seed": 1}},
        {"output": {"uri": "lake", "dtype": "uint8"}},
        {"model": {"name": "torchvision:resnet18", "weights": "random", "precision": "bf16"}},
    ):
        assert parse_job(document(**changes)).digest() != job.digest(), changes


def test_credentials_stay_out_of_the_identity() -> None:
    job = parse_job(document(output={"uri": "lake", "storage_options": {"secret": "hunter2"}}))
    assert "hunter2" not in str(job.identity())


def test_overrides_reach_every_kind_of_node(tmp_path: Any) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(
        "source: {uri: a.tar, format: webdataset, label: cls}\n"
        "model: {name: 'torchvision:resnet18', weights: random}\n"
        "targets: label\nmethods: [grad_cam, score_cam]\noutput: {uri: lake}\n"
    )
    job = load_job(
        str(path),
        ["targets.top_k=3", "methods.1.convention=paper", "workers.max=4", "output.uri=other", "max_failed=0.5"],
    )
    assert isinstance(job, Job)
    assert job.targets.top_k == 3 and job.targets.label
    assert job.methods[1].convention == "paper"  # type: ignore[union-attr]
    assert (job.workers.max, job.output.uri, job.max_failed) == (4, "other", 0.5)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("targets", "path=value"),
        ("methods.7.label=x", "names no entry of a list of 1"),
        ("output.uri.deeper=x", "single value"),
        ("targets.top_k=[", "not valid YAML"),
        ("tragets.top_k=3", "did you mean targets"),
    ],
)
def test_wrong_overrides_are_refused(tmp_path: Any, override: str, words: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(
        "source: {uri: a.tar, format: webdataset}\nmodel: {name: 'torchvision:resnet18'}\n"
        "methods: [{name: grad_cam}]\noutput: {uri: lake}\n"
    )
    with pytest.raises(InputError, match=r".") as caught:
        load_job(str(path), [override])
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [("a: [1,\nb: 2", "line 2"), ("- 1\n- 2\n", "no mapping"), ("", "no mapping"), (b"\xff\xfe\x00", "UTF-8")],
)
def test_files_that_are_no_job_are_refused(tmp_path: Any, content: str | bytes, words: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as caught:
        load_job(str(path))
    assert words in str(caught.value) and str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Any) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_job(str(tmp_path / "absent.yaml"))

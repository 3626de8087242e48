"""The methods' benchmark on a small network: who is compared with whom, and that the maps agree."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks import methods
from tests.benchmarks.conftest import NET, NORMALISED, Document, by_work

pytestmark = pytest.mark.filterwarnings("ignore")
ARGUMENTS = ("--model", NET, "--size", 64, "--count", 2, "--eager", "--together", *NORMALISED)


def test_every_work_has_its_peers_and_its_limit(document: Callable[..., Document]) -> None:
    found = document(methods.main, *ARGUMENTS)
    alone = by_work(found, "Grad-CAM alone")
    assert set(alone) == {"grad-cam", "torchcam", methods.LIMIT}
    six = {row["peer"]: row for row in found["rows"] if row["work"] == methods.SIX_WORK}
    five = {row["peer"]: row for row in found["rows"] if row["work"] == methods.FIVE_WORK}
    assert set(six) == set(five) == {"grad-cam", "torchcam", "torchcam, one forward", methods.LIMIT}
    for peer in ("grad-cam", "torchcam"):
        assert alone[peer]["agreement"] < 1e-4
        assert six[peer]["agreement"] < 1e-3
        assert five[peer]["peer_s"] == pytest.approx(5 * six[peer]["peer_s"])
        assert alone[peer]["peer_s"] < six[peer]["peer_s"]
    smooth = by_work(found, methods.SMOOTH_WORK)
    assert smooth["torchcam"]["agreement"] is None
    limit = [row for row in found["rows"] if row["peer"] == f"8 x {methods.LIMIT}"]
    assert [row["work"] for row in limit] == [methods.SMOOTH_WORK, methods.SMOOTH_WORK + methods.BY_GRADIENT]
    assert limit[0]["peer_s"] == pytest.approx(8 * six[methods.LIMIT]["peer_s"])
    notes = "\n".join(found["notes"])
    assert "torchcam's grad_cam_pp differs by" in notes
    assert "grad-cam has no cam: it was added on its base class" in notes
    assert "torchcam has no hires_cam: it was added on its base class" in notes
    assert "one class alone and the same class among five differ by 0" in notes


def test_at_a_layer_without_a_head_there_is_no_cam_and_no_closed_form(document: Callable[..., Document]) -> None:
    found = document(methods.main, *ARGUMENTS, "--layer", "stage2", "--all-passes")
    assert not any(row["work"].endswith(methods.BY_GRADIENT) for row in found["rows"])
    assert by_work(found, "Grad-CAM alone")["torchcam"]["agreement"] < 1e-4
    notes = "\n".join(found["notes"])
    assert "stage2" in notes
    assert "grad-cam has no cam" not in notes
    assert "torchcam has no hires_cam: it was added" in notes
    assert "the sum of its own 4 passes" in notes
    assert "are counted as" not in notes
    assert "CPU seconds" not in notes

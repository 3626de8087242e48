"""The benchmark of pseudo-labels on a small network: both settings, and shares that add up."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks import pseudo_labels
from tests.benchmarks.conftest import NET, NORMALISED, Document


def test_both_settings_have_a_limit_and_shares(
    document: Callable[..., Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pseudo_labels, "SIZES", ((40, 50),))
    found = document(pseudo_labels.main, "--model", NET, "--size", 64, "--count", 2, "--clock", "cpu", *NORMALISED)
    assert [row["work"].split(",")[0] for row in found["rows"]] == list(pseudo_labels.SETTINGS)
    assert {row["peer"] for row in found["rows"]} == {pseudo_labels.LIMIT}
    for setting in pseudo_labels.SETTINGS:
        assert sum(found[setting].values()) == pytest.approx(1) and min(found[setting].values()) > 0

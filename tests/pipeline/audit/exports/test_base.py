"""Names of columns, sizes of pictures, views."""

from __future__ import annotations

from pipeline.audit.exports.base import column_names, fitted, scaled
from schemas.view import View


def test_attributes_get_names_that_nothing_else_has() -> None:
    attributes = ["site", "dose µ", "dose_ä", "label", "_id", "1st", "attribute_label"]
    assert column_names(attributes, {"label"}) == {
        "site": "site",
        "dose µ": "dose__",
        "dose_ä": "attribute_dose__",
        "label": "attribute_label",
        "_id": "attribute__id",
        "1st": "attribute_1st",
        "attribute_label": "attribute_attribute_label",
    }
    names = column_names(["a-b", "a b", "a.b"], ())
    assert len(set(names.values())) == 3


def test_pictures_are_fitted_along_their_longer_side() -> None:
    assert fitted((64, 48), 128) == (128, 96)
    assert fitted((10, 4000), 128) == (1, 128)
    assert scaled(View(8, 0, 56, 48), (64, 48), (128, 24)) == View(16, 0, 112, 24)

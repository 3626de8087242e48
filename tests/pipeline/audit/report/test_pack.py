"""Numbers and text as they lie in the page."""

from __future__ import annotations

import base64
import json

import numpy as np

from pipeline.audit.report.pack import NOTHING, STEPS, clean, packed_map, packed_maps, quantised, script_json


def test_quantised() -> None:
    values = np.array([[0.1, -3.0, np.nan], [0.7, 5.0, np.nan], [np.nan, 5.0, np.nan]])
    packed = quantised(values)
    steps = np.frombuffer(base64.b64decode(packed["steps"]), "<u2").reshape(3, 3)
    low, high = np.array(packed["low"]), np.array(packed["high"])
    back = np.where(steps == NOTHING, np.nan, low + (high - low) * steps / STEPS)
    np.testing.assert_allclose(back, values, atol=8 / STEPS)
    assert np.isnan(back).tolist() == np.isnan(values).tolist()


def test_nothing_quantised() -> None:
    assert quantised(np.zeros((0, 2))) == {"low": [0.0, 0.0], "high": [0.0, 0.0], "steps": ""}


def test_maps() -> None:
    maps = np.random.default_rng(0).random((3, 14, 14)) * np.array([1, 7, 1])[:, None, None]
    maps[2] = np.nan
    packed = packed_maps(maps)
    scale = np.frombuffer(base64.b64decode(packed["scale"]), "<f4")
    cells = np.frombuffer(base64.b64decode(packed["cells"]), np.uint8).reshape(3, 14, 14)
    np.testing.assert_allclose(cells[:2] / 255 * scale[:2, None, None], maps[:2], atol=7 / 510 + 1e-6)
    assert scale[2] == 0


def test_signed_map() -> None:
    packed = packed_map(np.array([[-2.0, 0.0], [1.0, 2.0]]), signed=True)
    assert list(base64.b64decode(packed["cells"])) == [1, 128, 192, 255]
    assert packed["scale"] == 2


def test_clean() -> None:
    assert clean("a\x00b\ud800c\n", 9) == "a\ufffdb\ufffdc\ufffd"
    assert clean("abcdef", 6) == "abcdef"
    assert clean("abcdefg", 6) == "abcde…"


def test_script_json() -> None:
    text = script_json({"</script>": [np.float32("nan"), float("inf"), np.int64(3), "<!-- &amp; \u2028"]})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"</script>": [None, None, 3, "<!-- &amp; \u2028"]}

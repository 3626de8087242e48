"""Methods are measured with the model: the one that shows what it uses comes first."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.audit.faithful import first_of_equals, measure_faithfulness, spread
from pipeline.audit.faithful_table import FAITHFUL_MEASURES, no_better_than_random
from pipeline.audit.findings.base import Evidence
from pipeline.audit.frame import make_frame
from pipeline.audit.model import load_model
from pipeline.audit.run import run_audit
from pipeline.audit.state import State
from pipeline.audit.unit import add_unit
from pipeline.cam.faithfulness import adcc, coherency, faithfulness, road, scaled_masks
from pipeline.lake import LakeStore, open_lake
from schemas.audit import FAITHFULNESS, AuditManifest, Settings
from schemas.errors import LakeError
from tests.jobs.inline import run_inline
from tests.pipeline.audit import cues

IMAGES = 6
METHODS = ("grad_cam", "hires_cam", "eigen_cam", "score_cam")
SETTINGS = Settings(bootstrap=50, suppressed_below=2, interval_from=4, seed=4)

#: Of the time of all shares a fifth.
QUICK = partial(road, shares=(0.1, 0.4))

Rows = dict[tuple[str, str], dict[str, Any]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of which the network uses the green mark and the red object, and not the blue mark; and their lake."""
    folder = tmp_path_factory.mktemp("faithful")
    cues.write_shard(folder / "shard.tar", 24)
    run_inline(cues.document(folder) | {"methods": list(METHODS)})
    return folder


def evidence_of(folder: Path, settings: Settings = SETTINGS) -> Evidence:
    lake = open_lake(str(folder / "lake"))
    state = State(make_frame(lake, settings))
    for unit in lake.commits:
        add_unit(state, lake, unit, None)
    return Evidence(state.frame, state, lake, state.sample.table)


@pytest.fixture(scope="module")
def table(made: Path) -> pa.Table:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.audit.faithful.road", QUICK)
        found = measure_faithfulness(evidence_of(made), IMAGES, say=pytest.fail)
    assert found is not None
    return found


def rows_of(table: pa.Table) -> Rows:
    return {(row["method"], row["measure"]): row for row in table.to_pylist()}


def test_the_method_that_shows_what_is_used_is_the_best(table: pa.Table) -> None:
    rows = rows_of(table)
    assert table.schema.equals(FAITHFULNESS)
    assert rows["grad_cam", "road"]["best"] and rows["grad_cam", "deletion"]["best"]
    assert rows["grad_cam", "road"]["n"] == IMAGES
    assert rows["grad_cam", "road"]["to_random_low"] > 0.05
    assert rows["grad_cam", "deletion"]["to_random_high"] < -0.05
    # Eigen-CAM shows the blue mark, which lights up and moves no logit.
    assert [row.method for row in no_better_than_random(table)] == ["eigen_cam"]
    assert rows["eigen_cam", "road"]["to_best"] < -0.05
    assert rows["centre", "road"]["mean"] < rows["grad_cam", "road"]["low"]


def test_what_has_no_order_has_no_deletion(table: pa.Table) -> None:
    rows = rows_of(table)
    uniform = {measure.name: rows["uniform map", measure.name]["mean"] for measure in FAITHFUL_MEASURES}
    assert {name for name, mean in uniform.items() if mean is not None} == {"drop", "increase", "kept"}
    assert (uniform["drop"], uniform["increase"], uniform["kept"]) == (0, 0, 1)
    assert rows["random map", "kept"]["mean"] == pytest.approx(0.5, abs=0.1)
    # Masked forwards are not repeated for the coherency.
    for name in ("coherency", "adcc"):
        assert rows["score_cam", name]["n"] == rows["random map", name]["n"] == 0
        assert rows["grad_cam", name]["n"] == IMAGES


def test_numbers_are_those_of_the_lakes_maps(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One image by hand."""
    evidence = evidence_of(made, SETTINGS.model_copy(update={"suppressed_below": 1}))
    table = measure_faithfulness(evidence, 1, say=pytest.fail)
    assert table is not None
    chosen = spread(evidence.sample, 1, SETTINGS.seed).to_pylist()[0]
    image_id, target = chosen["image_id"], chosen["target_class"]
    model = load_model(evidence.lake)
    image = model.picture(evidence.originals, evidence.lake.image(image_id, chosen["unit_id"]))
    rows = rows_of(table)

    def score(images: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            chance: torch.Tensor = model.replica.model(images).double().softmax(1)[:, target]
        return chance

    seen = 0
    for row, heatmap in evidence.lake.heatmaps():
        if (row["image_id"], row["target_class"]) != (image_id, target) or row["method"] == "score_cam":
            continue
        seen += 1
        mask = scaled_masks(torch.from_numpy(heatmap)[None], (cues.SIDE, cues.SIDE))
        plain, ranked = faithfulness(score, image, mask), road(score, image, mask)
        expected = {name: float(getattr(plain, name)) for name in ("drop", "deletion", "insertion", "kept", "increase")}
        for name, value in expected.items():
            assert rows[row["method"], name]["mean"] == pytest.approx(value, abs=1e-5), (row["method"], name)
        # Its noise is another one.
        assert rows[row["method"], "road"]["mean"] == pytest.approx(float(ranked.combined), abs=1e-3)
        again = _grad_cam(model.replica.model, image * mask, target) if row["method"] == "grad_cam" else None
        if again is not None:
            coherent = coherency(mask, scaled_masks(again, (cues.SIDE, cues.SIDE)))
            assert rows["grad_cam", "coherency"]["mean"] == pytest.approx(float(coherent), abs=1e-4)
            whole = adcc(plain.drop, coherent, plain.kept)
            assert rows["grad_cam", "adcc"]["mean"] == pytest.approx(float(whole), abs=1e-4)
    assert seen == 3


def _grad_cam(network: Any, images: torch.Tensor, target: int) -> torch.Tensor:
    """Grad-CAM of the network of the cues, whose head is linear behind the mean."""
    with torch.no_grad():
        features = network.features(network.cells(images))
        maps: torch.Tensor = (features * network.head.weight[target][None, :, None, None]).sum(1).relu()
    return maps


def test_equal_maps_are_measured_once() -> None:
    rng = np.random.default_rng(0)
    one, two = (torch.from_numpy(rng.random((4, 4))) for _ in range(2))
    masks = torch.stack([one, two, one + 1e-4, torch.full_like(one, torch.nan), torch.full_like(one, torch.nan), two])
    assert first_of_equals(masks) == [0, 1, 0, 3, 4, 1]


def sample_of(counts: dict[int, int]) -> pa.Table:
    rng = np.random.default_rng(1)
    classes = np.repeat(list(counts), list(counts.values()))
    return pa.table(
        {
            "target_class": classes,
            "key": rng.integers(0, 2**63, len(classes)).astype(np.uint64),
            "image_id": [f"image-{number}" for number in range(len(classes))],
        }
    )


def test_images_are_spread_over_classes_by_hash() -> None:
    sample = sample_of({0: 50, 1: 3, 2: 50, 7: 50})
    found = spread(sample, 23, 0)
    count = {each: found["target_class"].to_pylist().count(each) for each in (0, 1, 2, 7)}
    assert count[1] == 3 and sorted(count.values()) == [3, 6, 7, 7]
    # Of each class those of the smallest keys; the order of the rows has no influence.
    keys = np.sort(sample["key"].to_numpy()[sample["target_class"].to_numpy() == 7])
    mine = found["key"].to_numpy()[found["target_class"].to_numpy() == 7]
    assert sorted(mine.tolist()) == keys[: count[7]].tolist()
    shuffled = sample.take(pa.array(np.random.default_rng(2).permutation(len(sample))))
    assert spread(shuffled, 23, 0).equals(found)
    # Fewer images than classes: the seed says which.
    few = {tuple(spread(sample, 2, seed)["target_class"].to_pylist()) for seed in range(12)}
    assert len(few) > 3
    assert len(spread(sample, 1000, 0)) == 153
    assert len(spread(sample.slice(0, 0), 5, 0)) == 0


def test_no_image_twice() -> None:
    sample = sample_of({0: 5, 1: 5})
    sample = sample.set_column(2, "image_id", [[f"image-{number % 5}" for number in range(10)]])
    assert sorted(spread(sample, 10, 0)["image_id"].to_pylist()) == [f"image-{number}" for number in range(5)]


def test_pictures_that_cannot_be_had_are_left_out(made: Path, tmp_path: Path) -> None:
    cues.write_shard(tmp_path / "shard.tar", 6)
    run_inline(cues.document(tmp_path))
    evidence = evidence_of(tmp_path)
    (tmp_path / "shard.tar").unlink()
    said: list[str] = []
    table = measure_faithfulness(evidence, 4, say=said.append)
    assert table is not None and set(table["n"].to_pylist()) == {0}
    assert len(said) == 1 and said[0].startswith("faithfulness left out for 4 of 4 images (")
    assert "is not there any more" in said[0]


def test_what_was_measured_is_not_measured_again(
    made: Path, table: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = LakeStore(str(tmp_path / "out"))

    def measured(images: int, seed: int = SETTINGS.seed) -> pa.Table | None:
        evidence = evidence_of(made, SETTINGS.model_copy(update={"seed": seed}))
        return measure_faithfulness(evidence, images, say=lambda line: None, output=output)

    monkeypatch.setattr("pipeline.audit.faithful.road", QUICK)
    # The third image is its last.
    calls = iter((QUICK, QUICK))
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.audit.faithful.road", lambda *given, **more: next(calls)(*given, **more))
        with pytest.raises(StopIteration):
            measured(IMAGES)
    assert len(list(output.list("parts/faithfulness"))) == 2
    assert measured(IMAGES).equals(table)  # type: ignore[union-attr]
    # Now nothing is left, and the model is not even asked for.
    monkeypatch.setattr(cues, "cue_net", None)
    assert measured(IMAGES).equals(table)  # type: ignore[union-attr]
    assert measured(IMAGES, seed=5) is None  # of another seed nothing is there
    for entry in list(output.list("parts/faithfulness")):
        output.put(entry.path, b"[[1]]")
    with pytest.raises(LakeError, match=r"parts/faithfulness/.*json is damaged; delete it"):
        measured(IMAGES)


def test_without_the_model_nothing_is_measured(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(cues, "cue_net", lambda gain=1.0: cues.CueNet(2 * gain))
    assert measure_faithfulness(evidence_of(made), 4, say=said.append) is None
    assert len(said) == 1 and said[0].startswith("faithfulness left out: the model cannot be had (model.weights:")


@pytest.mark.usefixtures("one_kind")
def test_an_audit_writes_the_table_where_it_is_asked_for(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.audit.faithful.road", QUICK)
    output = tmp_path / "out"
    lake = str(made / "lake")
    settings = SETTINGS.model_copy(update={"cluster": "status", "interval_from": 2})
    result = run_audit(lake, settings, str(output), say=lambda line: None, faithfulness=2)
    table = pq.read_table(output / "faithfulness.parquet")
    assert result.tables.faithfulness is not None and rows_of(table) == rows_of(result.tables.faithfulness)
    assert table.schema.remove_metadata().equals(FAITHFULNESS)
    manifest = AuditManifest.model_validate_json((output / "audit.json").read_text())
    assert manifest.faithfulness == 2
    # All images are of one cluster, so they are drawn together.
    drawn = [row for row in table.to_pylist() if row["n"] == 2]
    assert drawn and all(row["low"] == pytest.approx(row["mean"]) == row["high"] for row in drawn)
    # The same again, but for the cluster.
    alike = measure_faithfulness(evidence_of(made, settings.model_copy(update={"cluster": None})), 2, say=pytest.fail)
    assert alike is not None
    for name in ("method", "measure", "n", "mean"):
        assert table[name].equals(alike[name])
    assert any(row["low"] < row["mean"] - 0.01 for row in alike.to_pylist() if row["n"] == 2)
    # What one call does not make, it does not leave from another either.
    without = run_audit(lake, settings, str(output), say=lambda line: None)
    assert without.tables.faithfulness is None and not (output / "faithfulness.parquet").exists()
    assert AuditManifest.model_validate_json((output / "audit.json").read_text()).faithfulness == 0

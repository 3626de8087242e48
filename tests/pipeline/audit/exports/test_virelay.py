"""The ViRelAy project, read as its reader does."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline.audit.exports import export
from pipeline.audit.exports.virelay import category, principal, seen_pixels
from pipeline.lake import Lake
from pipeline.lake.enlarge import resize
from schemas.errors import InputError
from schemas.view import View
from tests.pipeline.audit.exports.pictured import make_pictured, picture

h5py = pytest.importorskip("h5py")


class Project:
    """What ViRelAy takes from a project, by the same paths."""

    def __init__(self, path: Path) -> None:
        self.about = yaml.safe_load(path.read_text())["project"]
        folder = path.parent
        self.labels = {each["index"]: each for each in json.loads((folder / self.about["label_map"]).read_text())}
        assert self.about["dataset"]["type"] == "hdf5"
        self.dataset = h5py.File(folder / self.about["dataset"]["path"])
        assert self.about["attributions"]["attribution_strategy"] in ("true_label", "predicted_label")
        self.attribution = h5py.File(folder / self.about["attributions"]["sources"][0])
        sources = [source for analysis in self.about["analyses"] for source in analysis["sources"]]
        self.analysis = h5py.File(folder / sources[0]) if sources else {}

    def sample(self, index: int) -> tuple[np.ndarray, str]:
        data = self.dataset["data"][index]
        assert np.argmin(data.shape) == 2 and data.dtype == np.uint8
        return data, self.labels[int(self.dataset["label"][index])]["name"]

    def heat(self, index: int) -> np.ndarray:
        """The map as it is shown: the sum over colours, which must be several."""
        assert "index" not in self.attribution and index < len(self.attribution["attribution"])
        data = self.attribution["attribution"][index]
        assert np.argmin(data.shape) == 2 and data.shape[2] == 3
        return np.asarray(data.sum(2))


@pytest.fixture(scope="module")
def project(pictured: Lake, tmp_path_factory: pytest.TempPathFactory) -> Project:
    output = tmp_path_factory.mktemp("exports") / "project"
    export(pictured, "virelay", output, images=60)
    return Project(output / "project.yaml")


def test_samples_are_what_the_model_saw_and_maps_lie_over_them(project: Project, pictured: Lake) -> None:
    assert project.about["attributions"]["attribution_method"] == "grad_cam at layer4"
    count = len(project.dataset["data"])
    assert count == len(project.attribution["attribution"]) == len(project.attribution["prediction"]) == 60
    maps = pictured.maps.to_table().to_pylist()
    rows = {row["image_id"]: row for row in maps if row["method"] == "grad_cam" and row["is_predicted"]}
    for index in range(count):
        image_id = project.dataset["image_id"][index].decode()
        image = pictured.image(image_id)
        data, label = project.sample(index)
        assert label == image["label_name"] and data.shape == (48, 48, 3)
        # The view is 48 pixels wide from the 8th, and red tells the column.
        assert abs(int(data[0, 0, 0]) - round(255 * 8 / 63)) <= 1 and data[0, 0, 2] == int(image_id[-5:])
        stored = np.nan_to_num(pictured.heatmap(rows[image_id], scaled=True))
        assert project.heat(index) == pytest.approx(resize(stored, 48, 48), abs=1e-6)
        assert project.attribution["prediction"][index].argmax() == image["predicted_class"]


def test_categories_hold_every_sound_map_and_have_the_same_names(project: Project) -> None:
    analysis = project.analysis
    names = sorted(analysis)
    ids = {label["word_net_id"]: label["name"] for label in project.labels.values()}
    assert names == ["all", *(category(number) for number in range(4))]
    assert [ids[name] for name in names[1:]] == [f"name-{number}" for number in range(4)]
    first = analysis[names[0]]
    for name in names:
        group = analysis[name]
        index = group["index"][:]
        assert list(group["embedding"]) == list(first["embedding"]) == ["parts", "pca"]
        assert list(group["cluster"]) == list(first["cluster"])
        assert set(group["cluster"]) == {"by boxes", "by camera", "by site", "outcome", "part"}
        for kind in ("embedding", "cluster"):
            for each in group[kind].values():
                assert len(each) == len(index) and np.isfinite(each[:]).all()
        assert all(project.heat(each).any() for each in index)
    rest = np.concatenate([analysis[name]["index"][:] for name in names[1:]])
    assert sorted(rest) == sorted(analysis["all"]["index"][:])
    zero = [index for index in range(60) if not project.heat(index).any()]
    assert sorted([*rest, *zero]) == list(range(60))


def test_clusters_mean_what_their_names_say(project: Project, pictured: Lake) -> None:
    group = project.analysis["all"]
    for name, column in (("by site", "site"), ("by camera", "camera")):
        meaning = json.loads(group[f"cluster/{name}"].attrs["names"])
        for index, number in zip(group["index"][:], group[f"cluster/{name}"][:], strict=True):
            image = pictured.image(project.dataset["image_id"][index].decode())
            assert meaning[number] == str(image[column])
    loadings = group["embedding/parts"][:]
    assert np.array_equal(group["cluster/part"][:], loadings.argmax(1))
    assert loadings.sum(1) == pytest.approx(np.ones(len(loadings)))


def test_the_parts_of_an_audit_are_used(pictured: Lake, audit: str, tmp_path: Path) -> None:
    export(pictured, "virelay", tmp_path / "out", audit=audit)
    analysis = Project(tmp_path / "out" / "project.yaml").analysis
    assert analysis["all/embedding/parts"].shape == (4, 5)


def test_images_without_a_label_have_one_that_says_so(tmp_path: Path) -> None:
    lake = make_pictured(tmp_path, units=1, images=6, labelled=False, failed=False, flagged=False)
    export(lake, "virelay", tmp_path / "out")
    project = Project(tmp_path / "out" / "project.yaml")
    assert {project.sample(index)[1] for index in range(6)} == {"(no label)"}


def test_maps_without_mass_only_make_no_analysis(tmp_path: Path) -> None:
    def zero(maps: Any, *given: Any) -> None:
        maps[:] = 0

    lake = make_pictured(tmp_path, units=1, images=4, failed=False, flagged=False, paint=zero)
    export(lake, "virelay", tmp_path / "out")
    project = Project(tmp_path / "out" / "project.yaml")
    assert project.about["analyses"] == [] and not project.heat(0).any()


def test_views_beyond_the_picture_are_black() -> None:
    seen = seen_pixels(Image.new("RGB", (10, 10), "white"), View(-5, 0, 15, 10), 20, 40)
    assert seen.shape == (20, 40, 3)
    assert not seen[:, :10].any() and not seen[:, 30:].any() and (seen[:, 10:30] == 255).all()
    assert not seen_pixels(Image.new("RGB", (4, 4), "white"), View(6, 6, 9, 9), 8, 8).any()
    assert picture(3)[:4] == b"\x89PNG"


def test_principal_components_are_those_of_the_covariance() -> None:
    rng = np.random.default_rng(0)
    density = rng.normal(size=(50, 6)) * [5, 3, 1, 0.5, 0.2, 0.1]
    found, variance = principal(density)
    expected = np.sort(np.linalg.eigvalsh(np.cov(density.T, bias=True)))[::-1]
    assert variance == pytest.approx(expected) and found.var(0) == pytest.approx(expected)
    alone, none = principal(density[:1])
    assert alone.tolist() == [[0, 0]] and none.tolist() == [0, 0]


def test_without_h5py_the_remedy_is_named(pictured: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def importing(name: str, *given: Any, **more: Any) -> Any:
        if name == "h5py":
            raise ImportError(name)
        return original(name, *given, **more)

    monkeypatch.setattr(builtins, "__import__", importing)
    with pytest.raises(InputError, match=r"needs h5py; pip install 'camlake\[audit\]'"):
        export(pictured, "virelay", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []

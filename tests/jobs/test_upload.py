"""What goes up with a job that is submitted: the modules beside the job file and camlake; no data, no environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.upload import MAX_BYTES, PACKAGES, stage
from schemas.errors import InputError

ROOT = Path(__file__).parents[2]


def staged(target: Path) -> set[str]:
    return {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "target").mkdir()
    return tmp_path / "target"


def test_modules_go_up_and_data_environments_caches_and_lakes_do_not(tmp_path: Path, target: Path) -> None:
    folder = tmp_path / "project"
    kept = ["job.yaml", "my_models/__init__.py", "my_models/net.py", "classes.txt"]
    write(folder, *kept)
    write(folder, ".env", ".git/config", "env/pyvenv.cfg", "env/lib/x.py", "my_models/__pycache__/net.pyc")
    write(folder, "lakes/run-1/camlake.json", "lakes/run-1/commits/a.json", "photo.JPG", "shard.tar", "net.safetensors")
    (folder / "linked").symlink_to(folder / "my_models")
    write(folder, "notes/a.txt", "deep/notes/a.txt", "deep/secret.yaml")
    upload = stage(folder, target, exclude=["notes/", "deep/secret.yaml"], code=False)
    assert staged(target) == set(kept)
    assert upload.files == len(kept) and upload.bytes == sum(len(name) for name in kept)


def test_all_of_camlake_goes_along(tmp_path: Path, target: Path) -> None:
    folder = tmp_path / "project"
    write(folder, "job.yaml")
    stage(folder, target)
    files = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert staged(target) == files | {"job.yaml"} and len(files) > 100


def test_a_checkout_goes_up_as_it_is(tmp_path: Path, target: Path) -> None:
    write(tmp_path / "checkout", *(f"{package}/__init__.py" for package in PACKAGES), "jobs/attribute.py", "job.yaml")
    assert stage(tmp_path / "checkout", target).files == 5


@pytest.mark.parametrize("name", ["pipeline/steps.py", "schemas.py"])
def test_a_name_that_would_hide_camlake_is_refused(tmp_path: Path, target: Path, name: str) -> None:
    folder = tmp_path / "project"
    write(folder, "job.yaml", name)
    with pytest.raises(InputError, match=rf"{name.partition('/')[0]}' has the name of a package .* rename it"):
        stage(folder, target)
    assert stage(folder, target, exclude=[name.partition("/")[0]]).files > 100


def test_too_much_is_refused_before_it_is_copied(tmp_path: Path, target: Path) -> None:
    folder = tmp_path / "project"
    write(folder, "job.yaml", "big/a.txt")
    with (folder / "big/a.txt").open("r+b") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(InputError, match=r"64 MiB in 2 files would go up.* big \(64\.0 MiB in 1 files\).*--exclude"):
        stage(folder, target)
    assert not staged(target)

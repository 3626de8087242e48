"""What goes up to a cluster with a job: the job file, the modules beside it, and camlake itself.

The files are copied into a folder of their own, which then is the job's working directory as it is: what goes along
is decided here, and neither by ignore files nor by the cluster.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from schemas.errors import InputError
from schemas.layout import MANIFEST

PACKAGES = ("jobs", "pipeline", "schemas")
#: Bytes and files that may go up; Ray keeps them in the memory of the cluster's head.
MAX_BYTES = 64 * 2**20
MAX_FILES = 10_000

#: Folders of caches and builds, by name; hidden ones never go along, nor do environments and lakes, by what they hold.
_FOLDERS = ("__pycache__", "node_modules", "build", "dist", "*.egg-info", "*.zarr", "*.audit")
#: Data and weights: images, archives, tables, arrays, tensors.
_FILES = (
    *("*.jpg", "*.jpeg", "*.png", "*.webp", "*.gif", "*.bmp", "*.tif", "*.tiff", "*.jp2", "*.dcm", "*.mp4"),
    *("*.tar", "*.tgz", "*.gz", "*.bz2", "*.xz", "*.zst", "*.zip", "*.7z", "*.whl", "*.so"),
    *("*.parquet", "*.arrow", "*.feather", "*.csv.gz", "*.h5", "*.hdf5", "*.npy", "*.npz", "*.tfrecord", "*.mds"),
    *("*.safetensors", "*.pt", "*.pth", "*.ckpt", "*.bin", "*.onnx"),
    *("*.pyc", "*.log"),
)
_OWN = Path(__file__).parents[1]


@dataclass(frozen=True)
class Upload:
    """What was put together: number of files and bytes, those of camlake among them."""

    files: int
    bytes: int


def stage(folder: Path | None, target: Path, *, exclude: Sequence[str] = (), code: bool = True) -> Upload:
    """Copy what a job needs into ``target``, an empty folder.

    Args:
        folder: the user's files, or None where there are none. Left out are hidden files, caches, environments, lakes,
            data and weights, links to folders, and what ``exclude`` names.
        target: where to.
        exclude: names of files and folders, or paths in ``folder``, with ``*`` and ``?``.
        code: whether camlake itself goes along; not where the cluster has it.

    Raises:
        InputError: it is too much, or a folder of the user's has the name of one of camlake's packages.
    """
    chosen: dict[Path, Path] = {}
    if folder is not None:
        chosen = {path.relative_to(folder): path for path in _files(folder, exclude)}
        _check(chosen, folder)
        # A checkout of camlake goes along as it is, changes and all.
        code = code and not all(Path(package, "__init__.py") in chosen for package in PACKAGES)
    if code:
        hidden = {relative.parts[0] for relative in chosen if relative.parts[0].removesuffix(".py") in PACKAGES}
        if hidden:
            raise InputError(
                f"'{folder}/{min(hidden)}' has the name of a package of camlake's and would hide it on the cluster; "
                "rename it, or leave it out with --exclude"
            )
        for package in PACKAGES:
            chosen |= {path.relative_to(_OWN): path for path in _files(_OWN / package, ())}
    size = 0
    for relative, path in sorted(chosen.items()):
        place = target / relative
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
        size += place.stat().st_size
    return Upload(len(chosen), size)


def _files(folder: Path, exclude: Sequence[str]) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        here = Path(parent)
        folders[:] = sorted(name for name in folders if not _left_out(folder, here / name, exclude, _FOLDERS))
        for name in sorted(names):
            if not _left_out(folder, here / name, exclude, _FILES) and (here / name).is_file():
                yield here / name


def _left_out(folder: Path, path: Path, exclude: Sequence[str], names: Sequence[str]) -> bool:
    if path.name.startswith(".") or any(fnmatch(path.name.lower(), name) for name in names):
        return True
    if path.is_dir() and any((path / mark).exists() for mark in ("pyvenv.cfg", "conda-meta", MANIFEST)):
        return True
    relative = path.relative_to(folder).as_posix()
    return any(
        fnmatch(relative, pattern)
        if "/" in (pattern := each.removeprefix("./").rstrip("/"))
        else fnmatch(path.name, pattern)
        for each in exclude
    )


def _check(chosen: dict[Path, Path], folder: Path) -> None:
    sizes = {relative: path.stat().st_size for relative, path in chosen.items()}
    if len(sizes) <= MAX_FILES and sum(sizes.values()) <= MAX_BYTES:
        return
    tops: dict[str, list[int]] = {}
    for relative, size in sizes.items():
        tops.setdefault(relative.parts[0], []).append(size)
    most = sorted(tops.items(), key=lambda item: (sum(item[1]), len(item[1])), reverse=True)[:3]
    names = ", ".join(f"{name} ({sum(all_) / 2**20:.1f} MiB in {len(all_)} files)" for name, all_ in most)
    raise InputError(
        f"--working-dir {folder}: {sum(sizes.values()) / 2**20:.0f} MiB in {len(sizes)} files would go up, and "
        f"{MAX_BYTES / 2**20:.0f} MiB in {MAX_FILES} files may; the most is in {names}; leave out what the job does "
        "not import with --exclude NAME, or put the job file and its modules into a folder of their own"
    )

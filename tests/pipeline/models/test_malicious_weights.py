"""Weights never run code: every form in which torch once wrote a pickle is refused before it acts."""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from pipeline.models.class_names import read_class_names
from pipeline.models.weights import read
from schemas.errors import InputError


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (Path.touch, (self.mark,))


class Evaluated(Payload):
    """The same through ``eval``, which looks like a builtin."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (eval, (f"__import__('pathlib').Path({str(self.mark)!r}).touch()",))


def _torch_zip(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _torch_legacy(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def _bare_zip(content: Any) -> bytes:
    """A zip that looks like torch's, written by hand."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(content, 2))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return buffer.getvalue()


def _tar(content: Any) -> bytes:
    """The form of torch 0.1: pickles in a tar."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            data = pickle.dumps(content)
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return buffer.getvalue()


FORMS: dict[str, Callable[[Any], bytes]] = {
    "zip": _torch_zip,
    "legacy": _torch_legacy,
    "bare zip": _bare_zip,
    "tar": _tar,
    **{f"pickle {protocol}": lambda content, p=protocol: pickle.dumps(content, p) for protocol in (0, 2, 4, 5)},
}
PLACES: dict[str, Callable[[Payload], Any]] = {
    "alone": lambda payload: payload,
    "a value": lambda payload: {"weight": torch.zeros(2), "bias": payload},
    "a key": lambda payload: {"state_dict": {"weight": torch.zeros(2)}, "meta": {(payload,): 1}},
}


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".safetensors"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", [Payload, Evaluated])
def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, form: str, suffix: str, kind: type[Payload]) -> None:
    mark, path = tmp_path / "executed", tmp_path / f"weights{suffix}"
    for place in PLACES.values():
        path.write_bytes(FORMS[form](place(kind(mark))))
        with pytest.raises(InputError) as caught:
            read(str(path))
        assert not mark.exists()
        message = str(caught.value)
        assert message.startswith(f"model.weights: '{path}' ") and "\n" not in message
        assert "torch.save(model.state_dict(), path) or as safetensors" in message
        # What torch advises, namely to trust the file, is no advice of ours.
        assert "weights_only" not in message


def test_the_payload_works(tmp_path: Path) -> None:
    """The tests above would see it: unpickled without care it does create the file."""
    for kind in (Payload, Evaluated):
        mark = tmp_path / kind.__name__
        torch.load(io.BytesIO(_torch_zip(kind(mark))), weights_only=False)
        assert mark.exists()


def test_what_the_pickle_names_is_named(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(_torch_zip(Evaluated(tmp_path / "executed")))
    with pytest.raises(InputError, match=r"would run code or build other objects \(eval\)"):
        read(str(path))


def test_class_names_are_not_unpickled_either(tmp_path: Path) -> None:
    mark, path = tmp_path / "executed", tmp_path / "names.json"
    path.write_bytes(pickle.dumps(Payload(mark)))
    with pytest.raises(InputError, match=r"model\.class_names: .* is no UTF-8 text"):
        read_class_names(str(path))
    assert not mark.exists()


def test_other_file_systems(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    with fsspec.open("memory://malicious/w.pt", "wb") as file:
        file.write(_torch_legacy({"a": Payload(mark)}))
    with pytest.raises(InputError, match="nor a torch file of tensors alone"):
        read("memory://malicious/w.pt")
    assert not mark.exists()

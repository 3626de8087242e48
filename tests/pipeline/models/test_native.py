"""Sources compiled on the machine: once, into a folder of the user's own, and not at all without a compiler."""

from __future__ import annotations

import ctypes
import logging
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline.models.native as native

SOURCE = 'extern "C" int answer() { return 42; }\n'


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    native.library.cache_clear()
    native._own_folder.cache_clear()
    folder = tmp_path / "cache"
    monkeypatch.setenv("CAMLAKE_CACHE", str(folder))
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "answer.cpp"
    path.write_text(SOURCE, encoding="utf-8")
    return path


def answer(library: ctypes.CDLL | None) -> int:
    assert library is not None
    return int(library.answer())


def test_it_is_compiled_once(cache: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert answer(native.library(source)) == 42
    (made,) = cache.iterdir()
    assert made.suffix == ".so"
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    native.library.cache_clear()
    monkeypatch.setattr(native, "_compile", lambda *_: pytest.fail("compiled again"))
    assert answer(native.library(source)) == 42


def test_another_source_or_machine_is_another_file(cache: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native.library(source)
    source.write_text(SOURCE.replace("42", "43"), encoding="utf-8")
    native.library.cache_clear()
    assert answer(native.library(source)) == 43
    monkeypatch.setattr(native, "_machine", lambda compiler: [b"another processor"])
    native.library.cache_clear()
    assert answer(native.library(source)) == 43
    assert len(list(cache.iterdir())) == 3


def test_without_a_compiler_there_is_none(
    cache: Path, source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(cache))
    monkeypatch.delenv("CXX", raising=False)
    with caplog.at_level(logging.INFO, native.__name__):
        assert native.library(source) is None
    assert "answer.cpp is not used: this machine has no C++ compiler" in caplog.text


def test_a_compiler_that_does_not_run_is_named(
    cache: Path, source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "/no/such/compiler")
    assert native.library(source) is None
    assert "/no/such/compiler" in caplog.text


def test_what_the_compiler_says_is_said(cache: Path, source: Path, caplog: pytest.LogCaptureFixture) -> None:
    source.write_text("no C++\n", encoding="utf-8")
    assert native.library(source) is None
    assert "answer.cpp is not used: " in caplog.text
    assert "error" in caplog.text or "In file" in caplog.text or "does not name" in caplog.text
    assert list(cache.iterdir()) == []  # no half of a library


def test_a_folder_that_others_can_write_is_not_used(
    cache: Path, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.mkdir()
    cache.chmod(0o777)
    with caplog.at_level(logging.INFO, native.__name__):
        assert answer(native.library(source)) == 42
    assert list(cache.iterdir()) == []
    assert "others can write to" in caplog.text


def test_a_folder_that_cannot_be_made_is_done_without(cache: Path, source: Path) -> None:
    cache.write_text("a file", encoding="utf-8")
    assert answer(native.library(source)) == 42


def test_a_user_without_a_home(
    cache: Path, source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("CAMLAKE_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", home)
    with caplog.at_level(logging.INFO, native.__name__):
        assert answer(native.library(source)) == 42
    assert "for this process only: Could not determine home directory" in caplog.text


def test_a_damaged_library_is_not_loaded(
    cache: Path, source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(native, "_compile", lambda compiler, source, path: path.write_bytes(b""))
    assert native.library(source) is None
    assert "answer.cpp is not used" in caplog.text


def test_processes_that_compile_at_the_same_time(cache: Path, source: Path) -> None:
    code = (
        "import sys, pathlib, pipeline.models.native as n; assert n.library(pathlib.Path(sys.argv[1])).answer() == 42"
    )
    environment = {**os.environ, "CAMLAKE_CACHE": str(cache)}
    running = [subprocess.Popen([sys.executable, "-c", code, str(source)], env=environment) for _ in range(2)]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    assert len(list(cache.iterdir())) == 1

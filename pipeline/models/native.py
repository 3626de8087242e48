"""C++ sources of this package as shared libraries, compiled on the machine that they run on."""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import torch  # noqa: F401 (its OpenMP runtime must be in the process first, so that both share one pool of threads)

_log = logging.getLogger(__name__)

_COMPILERS = ("c++", "g++", "clang++")
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-shared", "-fPIC")
_SECONDS = 120  # a compiler that takes longer than this hangs


@lru_cache
def library(source: Path) -> ctypes.CDLL | None:
    """Return ``source`` compiled for this machine's processor and loaded, or None where that cannot be done.

    The library is kept in a folder of the user's own (``CAMLAKE_CACHE``, or ``camlake`` in the user's cache folder),
    under a name that its source, the compiler and the processor determine. The log says why there is none.
    """
    if os.name != "posix":
        _log.info("%s is not used: it is compiled on Linux and macOS only", source.name)
        return None
    compiler = os.environ.get("CXX") or next((found for name in _COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        _log.info("%s is not used: this machine has no C++ compiler (%s)", source.name, ", ".join(_COMPILERS))
        return None
    try:
        key = hashlib.sha256(b"\0".join([source.read_bytes(), " ".join(_FLAGS).encode(), *_machine(compiler)]))
        path = _folder() / f"{source.stem}-{key.hexdigest()[:24]}.so"
        if not path.exists():
            _compile(compiler, source, path)
        return ctypes.CDLL(str(path))
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or ["no message"]
        _log.warning("%s is not used: %s does not compile it: %s", source.name, compiler, lines[0])
    except (OSError, subprocess.TimeoutExpired) as error:
        _log.warning("%s is not used: %s", source.name, error)
    return None


def _machine(compiler: str) -> list[bytes]:
    """Return what a compiled library depends on besides its source: ``-march=native`` is another on each machine."""
    version = subprocess.run([*compiler.split(), "--version"], capture_output=True, timeout=_SECONDS, check=True).stdout
    info = Path("/proc/cpuinfo")
    kept = (b"model name", b"flags", b"Features")
    lines = info.read_bytes().split(b"\n\n")[0].splitlines() if info.exists() else []
    return [version, platform.machine().encode(), *(line for line in lines if line.startswith(kept))]


def _folder() -> Path:
    """Return a folder that only this user can write, since what lies in it is run."""
    try:
        folder = _cache()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            reason = f"others can write to {folder}"
        elif not os.access(folder, os.W_OK):
            reason = f"{folder} cannot be written to"
        else:
            return folder
    except (OSError, RuntimeError) as error:  # a user without a home is a RuntimeError
        reason = str(error)
    _log.info("compiled for this process only: %s", reason)
    return _own_folder()


def _cache() -> Path:
    if given := os.environ.get("CAMLAKE_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "camlake"


@lru_cache
def _own_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="camlake-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _compile(compiler: str, source: Path, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        command = [*compiler.split(), *_FLAGS, "-o", str(made), str(source)]
        subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)
        made.replace(path)  # whole or not at all, for processes that compile it at the same time

"""The allocator's settings keep freed memory in the process."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from pipeline.engine.allocator import ALLOCATOR

# Page faults of ten blocks of 40 MB that are taken, touched and freed, by a thread that is not the first.
SCRIPT = """
import ctypes, resource, threading
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def work():
    for number in range(11):
        if number == 1:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        block = libc.malloc(40_000_000)
        ctypes.memset(block, 1, 40_000_000)
        libc.free(block)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


def faults(settings: dict[str, str]) -> int:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, env=environment | settings, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc reads these settings")
def test_freed_blocks_are_taken_again_without_page_faults() -> None:
    # With pages of 4 KiB ten blocks are 97,000 faults; fewer where the kernel gives larger pages.
    assert faults(ALLOCATOR) < 20 < faults({})

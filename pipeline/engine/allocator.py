"""Settings of glibc's malloc for workers that compute on a CPU; other allocators do not read them."""

from __future__ import annotations

#: By default glibc gives large blocks back to the kernel as soon as they are free and takes fresh, zeroed pages for the
#: next: with activations of 10 to 100 MB that is a tenth to a quarter of a forward's time (``python -m
#: benchmarks.allocator``). A worker's forwards have one shape and take the same blocks again and again, so it keeps
#: them. glibc reads these when a process starts, and one arena, because in others no block is larger than 64 MB.
ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TOP_PAD_": str(2**28),
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
}

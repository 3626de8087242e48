"""A process that hangs leaves its stacks behind."""

from __future__ import annotations

import subprocess
import sys
import threading

from pipeline.engine.watchdog import stacks

HANGS = """
import ctypes, time
from pipeline.engine.watchdog import Watchdog
dog = Watchdog(1.0)
for number in range({moves}):
    dog.see(number, True)
    time.sleep(0.1)
{then}
"""


def stderr(moves: int, then: str) -> str:
    code = HANGS.format(moves=moves, then=then)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stderr


def test_stacks_of_a_process_that_holds_the_interpreter_are_written() -> None:
    assert "Timeout" in (said := stderr(1, "ctypes.PyDLL(None).sleep(2)")) and '"<string>", line 8' in said


def test_progress_and_idleness_are_no_hanging() -> None:
    assert stderr(15, "dog.see(None, False); time.sleep(1.2)") == ""


def test_every_other_thread_is_in_the_stacks() -> None:
    stop = threading.Event()

    def wait_here() -> None:
        stop.wait(60)

    thread = threading.Thread(target=wait_here, name="waiter")
    thread.start()
    text = stacks()
    stop.set()
    thread.join()
    assert "thread waiter" in text and "wait_here" in text
    assert "test_every_other_thread" not in text

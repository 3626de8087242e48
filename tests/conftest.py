"""Fixtures of the whole suite."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.s3_server import S3Server, S3Store

# Read when torch loads, which is later: threads that spin while they wait starve the workers beside them.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:  # several processes share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

#: Fixtures and files of tests that need a Ray. Ray runs its workers at a low priority, so whatever runs beside them
#: makes them miss their time limits: `make test` runs these tests by themselves.
_RAY_FIXTURES = {"local_ray", "cluster"}
_RAY_FILES = {"test_chaos.py", "test_on_ray.py", "test_submit_on_ray.py"}


@pytest.hookimpl(tryfirst=True)  # before -m chooses by the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need a Ray (``-m ray``)."""
    for item in items:
        if _RAY_FIXTURES & set(getattr(item, "fixturenames", ())) or item.path.name in _RAY_FILES:
            item.add_marker(pytest.mark.ray)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """One S3-compatible server for the session, on a free local port."""
    from tests.s3_server import S3Server  # seconds to import, and most runs of a single file need no S3

    server = S3Server()
    yield server
    server.stop()


@pytest.fixture
def s3_store(s3_server: S3Server) -> S3Store:
    """A new bucket: ``.url(path)``, ``.put(path, data)`` and ``.storage_options``."""
    return s3_server.store()


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One Ray on this machine for the session: four slots, whatever the number of cores."""
    import ray

    ray.init(
        "local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        # How often metrics reach the endpoint where tests scrape them: ten seconds by default.
        _system_config={"metrics_report_interval_ms": 2000},
    )
    yield
    ray.shutdown()

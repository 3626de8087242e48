"""What Ray's own endpoint exports, as Prometheus would scrape it."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass

import ray
from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True)
class Sample:
    """A sample: its name, labels and value."""

    name: str
    labels: dict[str, str]
    value: float


class Scrape:
    """The samples of one run."""

    def __init__(self, samples: list[Sample]) -> None:
        self.samples = samples

    @property
    def names(self) -> set[str]:
        """Names of all samples."""
        return {sample.name for sample in self.samples}

    def by(self, name: str, label: str) -> dict[str, float]:
        """Values of a metric by one of its labels."""
        return {each.labels[label]: each.value for each in self.samples if each.name == name}

    def value(self, name: str) -> float | None:
        """The value of a metric that has no labels of its own; None while it is not there."""
        found = [each.value for each in self.samples if each.name == name]
        assert len(found) <= 1
        return found[0] if found else None


def scrape(run_id: str, until: Callable[[Scrape], bool], seconds: float = 60.0) -> Scrape:
    """Scrape this machine's node until the samples of a run are as they will be."""
    node = ray.nodes()[0]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    deadline = time.monotonic() + seconds
    while True:
        with urllib.request.urlopen(url, timeout=10) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        found = Scrape(
            [
                Sample(each.name, dict(each.labels), each.value)
                for family in families
                for each in family.samples
                if each.labels.get("run_id") == run_id
            ]
        )
        if until(found):
            return found
        assert time.monotonic() < deadline, sorted((each.name, each.value) for each in found.samples)
        time.sleep(0.2)

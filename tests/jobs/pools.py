"""A driver whose workers sleep and say where Ray placed them: ``python -m tests.jobs.pools JOB.yaml ADDRESS``."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import ray
import yaml

from benchmarks.sleeping import SleepingWorker
from jobs.config import absolute, parse_job
from pipeline.engine import dispatcher
from pipeline.engine.outcome import Outcome, WorkerInfo
from pipeline.engine.run import carry_out, make_manifest, resolve
from pipeline.lake.plan import freeze
from pipeline.sources import open_source
from schemas.unit import Unit


def place() -> str:
    """The node of this process, and its GPUs as Ray numbers them."""
    context = ray.get_runtime_context()
    return f"{context.get_node_id()} {context.get_accelerator_ids()['GPU']}"


class PlacedWorker(SleepingWorker):
    """Its node and device are those that Ray gave it; it takes its time while there is the order to rest."""

    seconds = 0.05

    def start(self) -> WorkerInfo:
        """Open source and sink."""
        info = super().start()
        node, _, device = place().partition(" ")
        return WorkerInfo(info.name, node, device, info.pid)

    def process(self, unit: Unit, attempt: str, careful: bool = False) -> Outcome:
        """Process a unit, later where that is ordered."""
        if (Path(str(self.job.model.options["faults"])) / "rest").exists():
            time.sleep(2.0)
        return super().process(unit, attempt, careful)


def main(job_file: str, address: str) -> None:
    """Run the job on the cluster."""
    dispatcher.WAIT_SECONDS = 2.0
    job = absolute(parse_job(yaml.safe_load(Path(job_file).read_text())))
    plan = freeze(open_source(job.source).plan())
    manifest = make_manifest(job, resolve(job), plan)

    def connect() -> None:
        ray.init(address, log_to_driver=False, logging_level="ERROR")
        print(f"the driver is on {place()}", flush=True)

    carry_out(job, manifest, plan, connect, say=print, stream=sys.stdout, worker=PlacedWorker)


if __name__ == "__main__":
    main(*sys.argv[1:])

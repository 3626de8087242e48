"""The lake: layout, commit protocol, writer, reader and verification. Imports neither torch nor Ray."""

from pipeline.lake.overlay import overlay
from pipeline.lake.plan import FrozenPlan, freeze, read_plan
from pipeline.lake.reader import Lake, open_lake
from pipeline.lake.run import Run, committed, create_or_resume, finalize, quarantine, quarantined
from pipeline.lake.sheet import contact_sheet, lake_sheet
from pipeline.lake.sink import MapSet, MapTargets, Sink, UnitResult, Written, new_attempt
from pipeline.lake.status import LakeStatus, status
from pipeline.lake.store import LakeStore, MissingObjectError, StoreError
from pipeline.lake.verify import Problem, Verification, verify
from pipeline.lake.writer import LakeSink

__all__ = [
    "FrozenPlan",
    "Lake",
    "LakeSink",
    "LakeStatus",
    "LakeStore",
    "MapSet",
    "MapTargets",
    "MissingObjectError",
    "Problem",
    "Run",
    "Sink",
    "StoreError",
    "UnitResult",
    "Verification",
    "Written",
    "committed",
    "contact_sheet",
    "create_or_resume",
    "finalize",
    "freeze",
    "lake_sheet",
    "new_attempt",
    "open_lake",
    "overlay",
    "quarantine",
    "quarantined",
    "read_plan",
    "status",
    "verify",
]

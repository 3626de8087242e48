"""A kind of finding for tests of the run: one finding per class, by its number of maps."""

from __future__ import annotations

from pipeline.audit.findings.base import Evidence, FindingKind, image_refs
from schemas.audit import Finding


class Counting(FindingKind):
    """Says how many maps a class has."""

    name = "degenerate"

    def find(self, evidence: Evidence) -> list[Finding]:
        found = []
        for target in evidence.classes:
            cell = evidence.cell(target)
            assert cell is not None
            rows = evidence.sample.filter(evidence.sample["target_class"].to_numpy() == target)
            found.append(
                Finding(
                    finding_id=f"degenerate:{target}",
                    kind=self.name,
                    title="Maps",
                    sentence=f"{evidence.frame.name(target)} has {cell.rows} maps.",
                    severity=cell.rows,
                    target_class=target,
                    effect=cell.mean(2),
                    n=cell.rows,
                    images=image_refs(rows, "here", 3),
                    details={"nothing": float("nan"), "maps": cell.maps},
                )
            )
        return found


KIND = Counting

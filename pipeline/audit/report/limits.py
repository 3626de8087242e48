"""How much of an audit goes into the page, so that its size has a bound whatever the lake's."""

from __future__ import annotations

from dataclasses import dataclass, replace

#: Most bytes of the whole page.
PAGE_BYTES = 15_000_000


@dataclass(frozen=True)
class Limits:
    """Most of everything.

    Attributes:
        classes: whose numbers and maps are in the page.
        cells: (class, group) pairs whose numbers are.
        cell_maps: of them, those whose mean map is.
        values: of one attribute that are compared over all classes.
        findings: that are shown.
        name: characters of a name from the data.
        sentence: characters of a sentence.
        pictures: bytes of pictures.
        picture_count: pictures, which bounds the time that fetching them takes.
    """

    classes: int = 6_000
    cells: int = 20_000
    cell_maps: int = 10_000
    values: int = 200
    findings: int = 300
    name: int = 120
    sentence: int = 1_200
    pictures: int = 7_000_000
    picture_count: int = 1_200

    def halved(self) -> Limits:
        """Return limits that make a page of about half the size."""
        return replace(
            self,
            classes=max(1, self.classes // 2),
            cells=max(1, self.cells // 2),
            cell_maps=max(1, self.cell_maps // 2),
            values=max(1, self.values // 2),
            findings=max(1, self.findings // 2),
            name=max(16, self.name // 2),
            sentence=max(100, self.sentence // 2),
        )

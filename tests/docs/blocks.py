"""The fenced blocks of a page, and what can be said of those that are commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
#: Pages of the site, and those that it takes in from elsewhere.
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "deploy" / "README.md", ROOT / "README.md"]


class Block(NamedTuple):
    """A fenced block."""

    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The path that the first line gives as a comment, where it does."""
        found = re.match(r"# ([\w./-]+\.(?:py|yaml))\n", self.text)
        return found[1] if found else None


def blocks(page: Path) -> list[Block]:
    """Blocks in the order of the page."""
    found = re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [Block(language, text) for language, text in found]


def commands(text: str) -> list[list[str]]:
    """The commands of a console block as words, without redirections, pipes and comments; `&&` ends one."""
    joined = re.sub(r"\\\n\s*", " ", text)
    found = []
    for line in joined.splitlines():
        if line.startswith("$ "):
            words = shlex.split(line[2:], comments=True)
            while words:
                end = words.index("&&") if "&&" in words else len(words)
                one = words[:end]
                stops = [place for place, word in enumerate(one) if word in (">", "|", "&", "2>")]
                found.append(one[: stops[0]] if stops else one)
                words = words[end + 1 :]
    return found

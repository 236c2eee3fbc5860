"""Checks that each link of the documentation leads to an existing file and heading. `make check` runs this.

Anchors are built as GitHub builds them. Web addresses are not called.
"""

import itertools
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from markdown_it import MarkdownIt
from markdown_it.token import Token

from stats_pipeline.settings import PROJECT_ROOT

PAGES = [PROJECT_ROOT / "README.md", *sorted((PROJECT_ROOT / "docs").rglob("*.md"))]


def broken(page: Path) -> Iterator[str]:
    """What is wrong with the links of a page, one line for each, in their order."""
    for token in _tokens(page):
        for part in token.children or ():
            target = part.attrGet("href") or part.attrGet("src")
            if target is None:
                continue
            link = urlsplit(str(target))
            if link.scheme or link.netloc:
                continue
            file = page.parent / unquote(link.path) if link.path else page
            said = f"{page}:{token.map[0] + 1 if token.map else '?'}: {target}"
            if not file.exists():
                yield f"{said}: no such file"
            elif link.fragment and (file.suffix != ".md" or unquote(link.fragment) not in _anchors(file)):
                yield f"{said}: no such heading"


def _tokens(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text())


def _anchors(page: Path) -> set[str]:
    seen: Counter[str] = Counter()
    anchors = set()
    tokens = _tokens(page)
    for opening, heading in itertools.pairwise(tokens):
        if opening.type == "heading_open":
            text = "".join(part.content for part in heading.children or ())
            anchor = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            anchors.add(f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor)
            seen[anchor] += 1
    return anchors


if __name__ == "__main__":
    sys.exit("\n".join(wrong for page in PAGES for wrong in broken(page)) or 0)

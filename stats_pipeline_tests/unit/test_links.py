"""The check of the documentation's links finds all wrong links, and only those; and the documentation passes it."""

from pathlib import Path

import pytest

from stats_pipeline_tests.links import PAGES, broken

OTHER = """
# `up`, and what it *does*
## Again
## Again
```
# no heading
```
"""


@pytest.mark.parametrize(
    ("link", "problem"),
    [
        ("[x](other.md)", None),
        ("[x](other.md#up-and-what-it-does)", None),
        ("[x](other.md#again)", None),
        ("[x](other.md#again-1)", None),
        ("[x](#here)", None),
        ("[x][reference]\n\n[reference]: folder/", None),
        ("[x](https://example.com/nowhere#at-all)", None),
        ("[x](mailto:nobody@example.com)", None),
        ("`[x](nowhere.md)`", None),
        ("[x](nowhere.md)", "no such file"),
        ("![x](nowhere.svg)", "no such file"),
        ("| a |\n|---|\n| [x](nowhere.md) |", "no such file"),
        ("[x][reference]\n\n[reference]: nowhere.md", "no such file"),
        ("[x](other.md#again-2)", "no such heading"),
        ("[x](other.md#no-heading)", "no such heading"),
        ("[x](#there)", "no such heading"),
        ("[x](folder/#here)", "no such heading"),
    ],
)
def test_a_link(tmp_path: Path, link: str, problem: str | None) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "other.md").write_text(OTHER)
    page = tmp_path / "page.md"
    page.write_text(f"# Here\n\n{link}\n")
    found = list(broken(page))
    assert [line.rpartition(": ")[2] for line in found] == ([] if problem is None else [problem])
    assert all(line.startswith(f"{page}:") for line in found)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_documentation(page: Path) -> None:
    assert list(broken(page)) == []

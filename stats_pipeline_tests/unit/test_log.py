"""Our own log lines: short, and one per condition, however long it lasts."""

import io
import os
from collections.abc import Iterator

import pytest
import structlog

from stats_pipeline import log
from stats_pipeline.log import Outage
from stats_pipeline.settings import named_fd


@pytest.fixture
def read_lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.FileIO]:
    """What a process that was given a descriptor for its lines writes there."""
    reader, writer = os.pipe()
    monkeypatch.setenv("STATS_LOG_FD", named_fd(writer))
    os.set_blocking(reader, False)
    with os.fdopen(reader, "rb", buffering=0) as lines:
        yield lines
    os.close(writer)
    structlog.reset_defaults()


def test_lines_go_to_the_given_descriptor_from_the_level_on(read_lines: io.FileIO) -> None:
    log.configure("warning")
    structlog.get_logger().info("not said")
    structlog.get_logger().warning("said", reason="two\nlines \x1b[31m")
    (line,) = (read_lines.read(10_000) or b"").decode().splitlines()
    assert "[warning] said" in line
    assert r"reason='two\nlines \x1b[31m'" in line


def test_a_descriptor_that_is_another_file_is_left_alone(
    read_lines: io.FileIO, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fd = int(os.environ["STATS_LOG_FD"].partition(":")[0])
    for other in (f"{fd}:1:1", "987:1:1", "nonsense"):
        monkeypatch.setenv("STATS_LOG_FD", other)
        log.configure("info")
        structlog.get_logger().info("said elsewhere")
    assert capsys.readouterr().err.count("said elsewhere") == 3
    assert read_lines.read(10_000) is None


def test_an_outage_is_one_line_and_its_end_another(read_lines: io.FileIO) -> None:
    log.configure("info")
    outage = Outage("the kettle is cold", "the kettle is hot")
    outage.is_over()
    for _ in range(2):
        for number in range(3):
            outage.begins(f"reason {number}")
        outage.is_over()
        outage.is_over()
    lines = (read_lines.read(10_000) or b"").decode().splitlines()
    assert [line.partition("kettle is ")[2].split()[0] for line in lines] == ["cold", "hot"] * 2
    assert "reason='reason 0'" in lines[0]

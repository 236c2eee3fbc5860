"""How a deployment's connections are split, and that the operations manual shows it."""

import re
from pathlib import Path

import pytest

from stats_pipeline.database import budget
from stats_pipeline.settings import LEAST_CONNECTIONS, PROJECT_ROOT, Settings


def settings_for(**given: str) -> Settings:
    return Settings.model_validate(given)


def test_the_table_in_the_manual_is_what_is_done() -> None:
    page = (PROJECT_ROOT / "docs" / "operations.md").read_text()
    rows = re.findall(
        r"^\| (\d+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) to (\d+) \|$", page, re.MULTILINE
    )
    assert {int(row[0]) for row in rows} >= {LEAST_CONNECTIONS, 12, 15}
    for row in rows:
        most, *told = map(int, row)
        split = budget.split(most, settings_for().max_runs)
        shown = [split.code_server, split.daemon, split.door, split.shared, split.runs]
        assert told == [*shown, split.computing_at_least, split.computing_at_most], most


@pytest.mark.parametrize("most", range(LEAST_CONNECTIONS, 80))
@pytest.mark.parametrize("max_runs", [1, 2, 4, 100])
def test_nothing_is_given_away_twice_and_something_can_always_compute(most: int, max_runs: int) -> None:
    split = budget.split(most, max_runs)
    assert split.code_server + split.daemon + split.door + split.shared == most
    assert 1 <= split.runs <= max_runs
    assert split.computing_at_least >= 1


@pytest.mark.parametrize(("most", "is_enough"), [(LEAST_CONNECTIONS - 1, False), (LEAST_CONNECTIONS, True)])
def test_a_run_by_hand_needs_the_least_that_is_allowed(tmp_path: Path, most: int, is_enough: bool) -> None:
    slots = budget.Slots(tmp_path, budget.split(most, 1).shared)
    with slots.take("run", budget.A_RUN), slots.take("computing"), slots.take("other"):  # the Dagster UI
        by_hand = slots.try_to_take("by-hand", budget.A_RUN)
        assert (by_hand is not None) == is_enough
        if by_hand is not None:
            by_hand.release()


def test_in_stock_the_runs_are_as_many_as_the_settings_say() -> None:
    assert budget.runs_at_a_time(settings_for(STATS_RUNTIME="stock", STATS_MAX_RUNS="9")) == 9
    assert budget.runs_at_a_time(settings_for(STATS_RUNTIME="fast", STATS_MAX_RUNS="9")) == 2

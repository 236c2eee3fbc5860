"""The benchmarks' own arithmetic and the format of their results; the measurements themselves are not judged."""

import itertools
import random
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest

from benchmarks import burst, harness, history, idle, latency
from stats_pipeline.settings import PROJECT_ROOT

FIGURES = {"p50", "p95", "max"}


@pytest.mark.parametrize("name", ["latency", "burst", "idle", "history"])
def test_help_says_how_long_it_takes(name: str) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--help"], cwd=PROJECT_ROOT, capture_output=True, check=True
    ).stdout.decode()
    assert "--json" in shown
    assert "minutes" in shown


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3.0], {"p50": 3.0, "p95": 3.0, "max": 3.0}),
        ([2.0, 1.0], {"p50": 1.0, "p95": 2.0, "max": 2.0}),
        ([0.12345, 0.1], {"p50": 0.1, "p95": 0.123, "max": 0.123}),
        (range(1, 21), {"p50": 10, "p95": 19, "max": 20}),
        (range(100, 0, -1), {"p50": 50, "p95": 95, "max": 100}),
    ],
)
def test_percentiles_are_values_that_were_measured(values: list[float], expected: dict[str, float]) -> None:
    assert harness.percentiles(values) == expected


def test_latency_compares_each_system_by_the_same_figures() -> None:
    def timings(count: int, completed: float) -> list[latency.Timing]:
        return [latency.Timing(completed / 2, completed + number, completed + number) for number in range(count)]

    result = latency.result_of(
        "40/200",
        {"ours": timings(4, 0.5), "plain": timings(4, 1.0), "floor": timings(3, 0.25), "stock": timings(2, 20.0)},
    )

    assert result.keys() == {"league", "jobs", "ours", "plain", "stock", "floor"}
    assert (result["league"], result["jobs"], result["stock"].pop("jobs")) == ("40/200", 4, 2)
    for system in ("ours", "plain", "stock", "floor"):
        assert result[system].keys() == {"started_s", "completed_s", "invalidated_s"}
        assert all(figures.keys() == FIGURES for figures in result[system].values())
    ratios = latency.ratios_of(result)
    assert ratios["completed p50, ours / plain"] == 0.75
    assert ratios["completed p50, ours - floor, seconds"] == 0.25


def completed(*seconds: float) -> list[latency.Timing]:
    return [latency.Timing(0.0, value, value) for value in seconds]


def test_two_versions_are_compared_by_their_medians() -> None:
    ours, theirs = completed(*[0.40, 0.42, 0.44, 0.46] * 10), completed(*[0.30, 0.32, 0.34, 0.36] * 10)

    against = latency.against_of("074f0d3", ours, theirs, seed=1)

    assert (against["commit"], against["jobs"], against["difference_s"]) == ("074f0d3", 40, 0.1)
    assert against["median_completed_s"] == {"ours": 0.43, "against": 0.33}
    low, high = against["interval_95_s"]
    assert 0.07 <= low < 0.1 < high <= 0.13
    assert against["resamples"] >= 10_000
    assert against["completed_s"].keys() == FIGURES
    assert against == latency.against_of("074f0d3", ours, theirs, seed=1)


def test_an_interval_covers_what_it_should() -> None:
    assert latency.bootstrap_interval([0.5] * 9, [0.4] * 9, seed=1) == pytest.approx((0.1, 0.1))
    rng = random.Random(1)
    covered = 0
    for seed in range(20):
        ours, theirs = ([rng.gauss(mean, 0.05) for _ in range(40)] for mean in (0.5, 0.4))
        low, high = latency.bootstrap_interval(ours, theirs, seed=seed, resamples=1_000)
        covered += low <= 0.1 <= high
    assert covered >= 17


def test_of_two_systems_each_goes_first_as_often() -> None:
    systems = ["ours", "plain", "against"]
    orders = [latency.turns(systems, number) for number in range(8)]
    for one, other in itertools.combinations(systems, 2):
        assert sum(order.index(one) < order.index(other) for order in orders) == 4


def test_a_version_is_never_migrated_by_the_code_of_another(tmp_path: Path) -> None:
    with pytest.raises(harness.BenchmarkFailed, match="would be used in place of"):
        harness.migrate_by(tmp_path, "postgresql://nowhere/")


def rows(count: int, *, tenants: int, runs: int) -> list[dict[str, object]]:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    return [
        {
            "tenant_id": UUID(int=number % tenants),
            "run_id": str(number % runs),
            "started_s": float(number),
            "created_at": start + timedelta(milliseconds=number),
            "completed_at": start + timedelta(seconds=number),
        }
        for number in range(count)
    ]


def test_a_burst_ends_with_its_last_job() -> None:
    assert burst.burst_result(rows(50, tenants=1, runs=2), rows(50, tenants=1, runs=50)[:30]) == {
        "jobs": 50,
        "ours_s": 49.0,
        "plain_s": 29.0,
        "runs": 2,
    }


def test_a_tenant_waits_until_its_first_job_starts() -> None:
    result = burst.tenants_result(rows(20, tenants=4, runs=5), max_open=3)

    assert result["wait_of_tenant_s"] == {"p50": 1.0, "p95": 3.0, "max": 3.0}
    assert (result["tenants"], result["jobs"], result["runs"], result["max_open_runs"]) == (4, 20, 5, 3)
    assert (result["completed_per_s"], result["ms_per_job"]) == (1.05, 950.0)


def test_idle_cost_is_per_minute_and_growth_per_job() -> None:
    before = {"daemon": idle.Usage(1.0, 100 * idle.MEBIBYTE)}
    after = {"daemon": idle.Usage(1.5, 101 * idle.MEBIBYTE), "new": idle.Usage(0.25, idle.MEBIBYTE)}

    assert idle.part_of(before, after, seconds=30, jobs=0)["daemon"] == {"cpu_s_per_minute": 1.0, "pss_mib": 101.0}
    assert idle.part_of(before, after, seconds=30, jobs=10)["daemon"]["cpu_s_per_job"] == 0.05
    assert idle.growth_of(before, after, 10) == {"daemon": 102.4}
    assert idle.pss_in_all({**after, "postgres": idle.Usage(0, 50 * idle.MEBIBYTE)}) == 102.0


def test_what_idling_costs_us_is_without_the_database() -> None:
    costs = {"daemon": {"cpu_s_per_minute": 1.25}, "door": {"cpu_s_per_minute": 0.5}}
    assert idle.without_postgres({**costs, "postgres": {"cpu_s_per_minute": 9.0}}) == 1.75


def test_a_statement_is_compared_by_its_median_calls() -> None:
    calls = [(0.001, 0.0015), (0.002, 0.003), (0.010, 0.003)]
    assert history.result_of(calls, rows=7) == {"small_ms": 2.0, "large_ms": 3.0, "ratio": 1.5, "rows_read": 7}

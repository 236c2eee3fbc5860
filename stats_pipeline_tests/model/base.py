"""Shared by all rules: the step, the drawn values, and the machine without rules.

The values that Hypothesis draws never depend on the database: a rule that has nothing to do does nothing.
"""

import functools
from collections.abc import Callable
from typing import Any, cast

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from stats_pipeline.jobs.invalidation import CacheClient
from stats_pipeline.settings import Settings
from stats_pipeline_tests.acceptance.app_server import KEY, App
from stats_pipeline_tests.model.account import Account
from stats_pipeline_tests.model.world import CLUBS, DEFAULT, World

PICK = st.integers(0, 11)
CLUB = st.sampled_from(range(len(CLUBS)))

MALFORMED: tuple[Callable[[str], Any], ...] = (
    lambda mark: {"triggeredBy": "nobody", "requestId": mark},
    lambda mark: {"triggeredBy": "admin", "note": mark},
    lambda mark: {"triggeredBy": "admin", "requestId": mark, "tenantId": "the reds"},
    lambda mark: mark,
    lambda mark: [mark],
)
KIND = st.sampled_from(range(len(MALFORMED)))


def step(**arguments: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A rule, after which account and database are compared. After one that went wrong nothing more is asked."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @rule(**arguments)  # type: ignore[call-overload, untyped-decorator]
        @functools.wraps(function)
        def run(self: "Base", **drawn: Any) -> None:
            try:
                function(self, **drawn)
                self.compare()
            except BaseException:
                self.is_broken = True
                raise

        return cast(Callable[..., None], run)

    return decorate


class Base(RuleBasedStateMachine):
    """One club is calm: nobody touches it, its runs do not die, and it must not notice what happens to the others."""

    def __init__(self, world: World, app: App, cache: CacheClient) -> None:
        super().__init__()
        self.world = world
        self.database = world.database
        self.app = app
        self.cache = cache
        self.is_broken = True  # until it has begun
        self.count = 0
        world.empty()

    @initialize(calm=CLUB, has_app=st.booleans())
    def begin(self, calm: int, has_app: bool) -> None:
        self.account = Account(CLUBS[calm], has_app)
        fields = {"NEXT_PUBLIC_APP_URL": self.app.url, "INTERNAL_API_KEY": KEY} if has_app else {}
        self.settings = Settings.model_validate(fields)
        self.is_broken = False

    def compare(self) -> None:
        self.account.compare(self.world.look())

    def is_calm(self, club: str) -> bool:
        return club == self.account.calm

    def held(self) -> tuple[set[str], set[int]]:
        """The rows and messages that an app's transaction holds."""
        return set(), set()

    def is_held(self) -> bool:
        """Whether an app's transaction holds anything."""
        return False

    def is_disturbed(self) -> bool:
        """Whether the app refuses or holds something, so that a repair may have to wait."""
        return False

    def unique(self, word: str) -> str:
        self.count += 1
        return f"{word} {self.count}."

    def payload(self, club: int | str, *, is_spelled: bool = True, **fields: Any) -> dict[str, Any]:
        """A well-formed one. The default club need not be spelled."""
        name = CLUBS[club] if isinstance(club, int) else club
        made = {"triggeredBy": "post-match", "requestId": self.unique("request"), **fields}
        return {**made, "tenantId": name} if is_spelled or name != DEFAULT else made

"""The connections that one deployment may have: how many each process keeps, and the slots that the others share.

`split` is the arithmetic; the table in `docs/operations.md` shows it. `Slots` are the shared connections of one state
folder, as files on which the holder of a connection has a lock: the kernel frees the slots of a process that dies. How
a connection is opened, kept and closed is in `connection.py`. Dagster's own classes (`stock`) know of no budget.

Nobody can wait for good: one slot is for computing alone, which never waits for a second one; and two are for a run
with a lease, or for computing until such a run wants them. So a run that has its two can always compute, and then ends.
A run that was launched by hand may wait minutes for another one of its club: it must not have what that one needs.
"""

import fcntl
import math
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stats_pipeline.settings import Settings

# Kept for as long as the process lives, whether or not there is a slot.
CODE_SERVER = 3  # the queue sensor's, which listens; that of the other sensors and schedules; Dagster's storage
DAEMON = 1  # Dagster's storage
DOOR = 1  # requests
A_RUN = 2  # claim, heartbeat, settle, tags; and Dagster's storage
_OTHERS = 2  # the page's live stream and the Dagster UI, while they are open
_FOR_COMPUTING = 1
# A run at a time, with all of the above, and one more, make `settings.LEAST_CONNECTIONS`: a run by hand has its two
# beside the Dagster UI, which never gives way.

POLL_SECONDS = 0.02

Kind = Literal["run", "by-hand", "computing", "other"]  # a run with a lease, and one that waits for its club's


@dataclass(frozen=True)
class Split:
    """Who has how many of a deployment's connections. `shared` are the slots."""

    code_server: int
    daemon: int
    door: int
    shared: int
    runs: int  # at a time

    @property
    def computing_at_most(self) -> int:
        """The connections that compute while one run works, and no page, Dagster UI or command line is open."""
        return self.shared - A_RUN

    @property
    def computing_at_least(self) -> int:
        """The same while as many runs as possible work, and a page and the Dagster UI are open."""
        return self.shared - _OTHERS - self.runs * A_RUN


def split(max_connections: int, max_runs: int) -> Split:
    """What follows from STATS_MAX_CONNECTIONS (eleven or more) and STATS_MAX_RUNS."""
    shared = max_connections - CODE_SERVER - DAEMON - DOOR
    room = (shared - _OTHERS - _FOR_COMPUTING) // A_RUN
    return Split(CODE_SERVER, DAEMON, DOOR, shared, runs=max(1, min(room, max_runs)))


def is_kept(settings: Settings) -> bool:
    """Whether the processes of these settings share the budget: in `stock`, Dagster's own classes do as they like."""
    return settings.runtime != "stock"


def runs_at_a_time(settings: Settings) -> int:
    """How many leases may be open at a time."""
    if not is_kept(settings):
        return settings.max_runs
    return split(settings.max_connections, settings.max_runs).runs


class Held:
    """Slots of this process, until they are released or it ends."""

    def __init__(self, slots: "Slots", numbers: tuple[int, ...], files: tuple[int, ...]) -> None:
        self._slots = slots
        self._numbers = numbers
        self._files = files

    def __enter__(self) -> "Held":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """May be called twice."""
        for file in self._files:
            _close(file)
        self._files = ()

    def is_wanted(self) -> bool:
        """Whether somebody waits who could have one of these slots."""
        return any(self._slots.is_wanted(number) for number in self._numbers)


class Slots:
    """The shared connections of the processes of one state folder."""

    def __init__(self, folder: Path, count: int) -> None:
        self._folder = folder
        self._count = count
        folder.mkdir(parents=True, exist_ok=True)

    def try_to_take(self, kind: Kind, count: int = 1, *, has_some: bool = False) -> Held | None:
        """So many slots, or None if they are not free for this kind now. Never waits.

        Runs that wait go first, those with a lease before all, and what computes goes last. A process that `has_some`
        of the kind already gets no more while another one that computes has none.
        """
        if has_some and self._waits("computing"):
            return None
        is_late = kind != "run" and self._waits("run")
        is_later = (kind in ("computing", "other") and self._waits("by-hand")) or (
            kind == "computing" and self._waits("other")
        )
        numbers: list[int] = []
        files: list[int] = []
        for number in self._order(kind):
            if (is_late and number > 0) or (is_later and number > A_RUN):
                continue
            if (file := self._lock(f"{number:02}", fcntl.LOCK_EX | fcntl.LOCK_NB)) is not None:
                numbers.append(number)
                files.append(file)
                if len(files) == count:
                    return Held(self, tuple(numbers), tuple(files))
        for file in files:
            _close(file)
        return None

    def take(self, kind: Kind, count: int = 1) -> Held:
        """So many slots, all together. Waits for its turn, for as long as that takes."""
        held = None
        while held is None:
            held = self.take_within(math.inf, kind, count)
        return held

    def take_within(self, seconds: float, kind: Kind, count: int = 1) -> Held | None:
        """The same, or None if that takes longer."""
        if (held := self.try_to_take(kind, count)) is not None:
            return held
        until = time.monotonic() + seconds
        with self.waiting(kind):
            while (held := self.try_to_take(kind, count)) is None and time.monotonic() < until:
                # Two that want the last two slots must not go on taking one each.
                time.sleep(POLL_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311
            return held

    @contextmanager
    def waiting(self, kind: Kind) -> Iterator[None]:
        """Make it known to the holders of slots that one of this kind is wanted."""
        file = self._lock(f"waiting-{kind}", fcntl.LOCK_SH)
        try:
            yield
        finally:
            if file is not None:
                _close(file)

    def is_wanted(self, number: int) -> bool:
        """Whether somebody waits who could have this slot."""
        return (
            self._waits("computing")
            or (number > 0 and self._waits("run"))
            or (number > A_RUN and (self._waits("by-hand") or self._waits("other")))
        )

    def _order(self, kind: Kind) -> list[int]:
        """The slots that the kind may have, the one to take first in front."""
        for_runs, for_all = list(range(1, 1 + A_RUN)), list(range(1 + A_RUN, self._count))
        orders: dict[Kind, list[int]] = {
            "run": for_runs + for_all,
            "by-hand": for_all,
            "computing": [0, *for_all, *for_runs],
            "other": for_all,
        }
        return orders[kind]

    def _waits(self, kind: Kind) -> bool:
        # Who looks at the same time is taken for one who waits: at worst a connection is closed in vain.
        file = self._lock(f"waiting-{kind}", fcntl.LOCK_EX | fcntl.LOCK_NB)
        if file is None:
            return True
        _close(file)
        return False

    def _lock(self, name: str, how: int) -> int | None:
        """The open file with its lock; None if another open file has it."""
        with _opening:  # a fork in between would leave the file open in the child
            file = os.open(self._folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            _files.add(file)
        try:
            fcntl.flock(file, how)
        except BlockingIOError:
            _close(file)
            return None
        return file


_files: set[int] = set()
_opening = threading.Lock()


def _close(file: int) -> None:
    with _opening:
        _files.discard(file)
        os.close(file)


def _forget_in_child() -> None:
    """A lock belongs to the open file, which a forked process shares: it would outlive the process that took it."""
    for file in _files:
        os.close(file)
    _files.clear()
    _room.clear()
    _opening.release()


_room: list[Held] = []
os.register_at_fork(before=_opening.acquire, after_in_parent=_opening.release, after_in_child=_forget_in_child)


def slots(settings: Settings) -> Slots | None:
    """The shared connections of this state folder; None where no budget is kept: in `stock`, and in a command of a
    folder or a user that has no deployment."""
    folder = settings.home / "connections"
    if not is_kept(settings) or not settings.home.is_dir():
        return None
    try:
        shared = Slots(folder, split(settings.max_connections, settings.max_runs).shared)
    except PermissionError:
        return None
    return shared if os.access(folder, os.W_OK | os.X_OK) else None


def take_room_for_a_run(settings: Settings, *, by_hand: bool = False) -> None:
    """Wait for the two connections of a run, and hold them until this process ends. To be called before all else.

    A run `by_hand` is one without a lease.
    """
    _hold(settings, "by-hand" if by_hand else "run", A_RUN)


def take_room_for_a_command(settings: Settings, say: Callable[[], None], *, patience: float = math.inf) -> bool:
    """The same for a command that works as a run does, and waits for no other one. Calls `say` if it has to wait; False
    after `patience`, seconds."""
    shared = slots(settings)
    if shared is None:
        return True
    held = shared.try_to_take("run", A_RUN)
    if held is None:
        say()
        held = shared.take_within(patience, "run", A_RUN)
    if held is not None:
        _room.append(held)
    return held is not None


def take_room_for_a_report(settings: Settings) -> None:
    """The same for a process that only tells Dagster how a run has ended."""
    _hold(settings, "run", 1)


def take_room_for_dagsters_ui(settings: Settings) -> None:
    """The same for the connection of the Dagster UI, in the process that serves it."""
    _hold(settings, "other", 1)


def _hold(settings: Settings, kind: Kind, count: int) -> None:
    shared = slots(settings)
    if shared is not None:
        _room.append(shared.take(kind, count))


def has_room() -> bool:
    """Whether this process holds its slots: not in `stock`."""
    return bool(_room)

"""Forks of a process without threads, as `up` is one: what they share, and what they do not inherit."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest


def run(code: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run the code in a Python of its own, which is a single thread."""
    program = "import os, signal, sys, time\nfrom pathlib import Path\nfrom stats_pipeline.deployment import forking\n"
    program += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored under a shell's `&`
    return subprocess.run(
        [sys.executable, "-c", program + textwrap.dedent(code)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_fork_has_its_own_session_environment_folder_log_and_title(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    code = """
        forking.getproctitle()
        signal.signal(signal.SIGTERM, lambda *_: None)
        def body():
            print(os.getsid(0) == os.getpid(), sorted(os.environ), os.getcwd())
            print(Path("/proc/self/cmdline").read_text().strip(chr(0)), signal.getsignal(signal.SIGTERM).name)
            os.write(int(os.environ["STATS_LOG_FD"].split(":")[0]), b"a line of ours")
            sys.exit("the end")
        log, folder = Path.cwd() / "log", Path.cwd() / "elsewhere"
        pid = forking.fork(body, title="a title", environment={"GIVEN": "1"}, folder=folder, log=log)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """
    done = run(code, tmp_path)
    assert (done.stdout, done.stderr) == ("1\n", "a line of ours")
    assert (tmp_path / "log").read_text().splitlines() == [
        f"True ['GIVEN', 'STATS_LOG_FD'] {tmp_path / 'elsewhere'}",
        "a title SIG_DFL",
    ]


def test_a_fork_that_raises_leaves_its_traceback_in_its_log_and_never_returns(tmp_path: Path) -> None:
    code = """
        def body():
            raise ValueError("broken on purpose")
        here = Path.cwd()
        try:
            pid = forking.fork(body, title="a title", environment={}, folder=here, log=here / "log")
        finally:
            print("returned")
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """
    assert run(code, tmp_path).stdout == "returned\n1\n"
    assert (tmp_path / "log").read_text().endswith("ValueError: broken on purpose\n")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return os.getppid()", "the same"),
        ("raise forking.StatsPipelineError('say so')", "say so"),
        ("raise ValueError('broken on purpose')", "broken on purpose"),
        ("os.kill(os.getpid(), 9)", "a process that prepares the start was killed"),
    ],
)
def test_the_result_of_a_fork(body: str, said: str, tmp_path: Path) -> None:
    code = f"""
        def body():
            {body}
        try:
            print("the same" if forking.in_a_fork(body) == os.getpid() else "another")
        except forking.StatsPipelineError as error:
            print(error)
    """
    assert run(code, tmp_path).stdout.strip().endswith(said)


def test_a_process_with_threads_is_not_forked(tmp_path: Path) -> None:
    code = """
        import threading
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        forking.in_a_fork(lambda: None)
    """
    assert "a process with 2 threads cannot be forked safely" in run(code, tmp_path).stderr


def test_everything_is_imported_without_a_thread_or_a_connection(tmp_path: Path) -> None:
    code = """
        settings = {"STATS_SETTINGS_COMPLETE": "1", "STATS_HOME": str(Path.cwd()), "STATS_RUNTIME": "fast"}
        forking.import_ahead("fast", environment={**settings, "STATS_CRON": "7 7 * * *"})
        forking.in_a_fork(lambda: None)  # refuses if there is a second thread
        files = [Path(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if int(fd) > 2]
        print([str(file.readlink()) for file in files if file.is_symlink()])
        from stats_pipeline.definitions import defs
        print(defs.resolve_schedule_def("nightly_stats").cron_schedule, "STATS_CRON" in os.environ)
    """
    done = run(code, tmp_path)
    files, loaded = done.stdout.splitlines()
    assert "socket" not in files, done.stderr
    assert loaded == "7 7 * * * False"


def test_a_signal_in_the_moment_of_the_fork_has_nobody_return_into_the_code_of_the_old_process(tmp_path: Path) -> None:
    code = """
        os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGINT))
        try:
            pid = forking.fork_task(lambda: time.sleep(60))
        finally:
            print("returned", flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """
    assert run(code, tmp_path).stdout == "returned\n130\n"


def test_a_signal_waits_for_the_end_of_what_is_not_to_be_left_half_done(tmp_path: Path) -> None:
    code = """
        try:
            with forking.undisturbed():
                os.kill(os.getpid(), signal.SIGINT)
                print("done")
        except KeyboardInterrupt:
            print("and ended")
    """
    assert run(code, tmp_path).stdout == "done\nand ended\n"

"""The package: the files built by `python -m build` are complete, and work without the checkout.

The wheel is installed into an empty virtual environment without the network. Its dependencies are links to those of the
environment that runs the tests: the new one has everything in its `site-packages`, and does not see the checkout.
"""

import json
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from stats_pipeline.catalog import STATS_FUNCTIONS
from stats_pipeline.settings import PROJECT_ROOT
from stats_pipeline_tests.ports import free_port


@dataclass(frozen=True)
class Installed:
    """A virtual environment that has the package, and an empty folder to work in."""

    environment: Path
    folder: Path

    @property
    def site_packages(self) -> Path:
        [found] = (self.environment / "lib").glob("python*/site-packages")
        return found

    def run(self, command: str, *arguments: str, **settings: str) -> str:
        """Run a command of the environment in the folder; its standard output."""
        finished = subprocess.run(
            [self.environment / "bin" / command, *arguments],
            cwd=self.folder,
            env={"PATH": os.environ["PATH"], "HOME": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1", **settings},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
        assert finished.returncode == 0, finished.stdout + finished.stderr
        return finished.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist, as by anybody who has only that."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(PROJECT_ROOT)],
        capture_output=True,
        check=True,
    )
    [wheel] = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    home = tmp_path_factory.mktemp("p")
    if os.geteuid() == 0:
        home.chmod(0o711)  # the embedded server's user passes through
    made = Installed(home / "environment", home / "w")
    made.folder.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", made.environment], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(made.environment / "bin" / "python"), "install"]
    subprocess.run([*pip, "--quiet", "--no-index", "--no-deps", str(wheel)], check=True)
    for folder in [Path(path) for path in sys.path if path.endswith("site-packages")]:
        for dependency in folder.iterdir():
            link = made.site_packages / dependency.name
            if dependency.suffix != ".pth" and not link.exists():
                link.symlink_to(dependency)
    return made


def files(folder: Path) -> set[str]:
    return {
        file.relative_to(folder).as_posix()
        for file in folder.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }


def test_a_wheel_has_every_file_of_the_package_and_no_other(wheel: Path) -> None:
    package = {f"stats_pipeline/{name}" for name in files(PROJECT_ROOT / "stats_pipeline")}
    sql = {f"stats_pipeline/sql/{name}" for name in files(PROJECT_ROOT / "sql")}
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == package | sql | {"stats_pipeline/dagster.yaml"}
    assert "stats_pipeline/py.typed" in names


def test_an_index_would_take_it(wheel: Path) -> None:
    made = [str(file) for file in wheel.parent.iterdir()]
    assert len(made) == 2
    command = [sys.executable, "-m", "twine", "--no-color", "check", "--strict", *made]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_the_demo_and_migrate_work_in_an_empty_folder(installed: Installed) -> None:
    before = files(installed.site_packages)
    port = {"STATS_PORT": str(free_port())}
    result = json.loads(installed.run("stats-pipeline", "demo", "--exit", "--json", **port))
    assert result["status"] == "completed"
    assert {function.rpc for function in STATS_FUNCTIONS} == set(result["functions"])
    assert [path.name for path in installed.folder.iterdir()] == [".stats-pipeline"]

    assert installed.run("stats-pipeline", "migrate")
    assert [path.name for path in installed.folder.iterdir()] == [".stats-pipeline"]
    assert files(installed.site_packages) == before


def test_a_dot_env_of_the_current_folder_is_read(installed: Installed) -> None:
    where = "from stats_pipeline import settings; loaded = settings.load(); print(loaded.home, loaded.max_runs)"
    (installed.folder / ".env").write_text("STATS_MAX_RUNS=7\n")
    try:
        shown = installed.run("python", "-c", where)
    finally:
        (installed.folder / ".env").unlink()
    assert shown == f"{installed.folder / '.stats-pipeline'} 7\n"


def test_dagster_loads_the_definitions(installed: Installed) -> None:
    installed.run("python", "-m", "dagster", "definitions", "validate", "-m", "stats_pipeline.definitions")

"""Contents of the wheel; nothing in a user's folder shadows them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [str(Path(sys.executable).with_name("uv")), "build", "--wheel", "--offline"]
    command += ["--no-build-isolation", "--python", sys.executable, "--out-dir", str(folder)]
    done = subprocess.run([*command, str(ROOT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_installs_one_package_with_all_that_is_tracked_in_it(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    heads = {name.split("/")[0] for name in names}
    assert heads == {"labelcurve", "labelcurve-0.1.0.dist-info"}
    folders = ("bundle", "training", "serving", "benchmarks")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *folders],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    tracked = {name for name in listed.stdout.split("\n") if (ROOT / name).is_file()}
    own = {"__init__.py", "__main__.py", "completion.py", "library.py", "py.typed"}
    inside = {name.removeprefix("labelcurve/") for name in names if name.startswith("labelcurve/")}
    assert inside == tracked | own
    for data in (
        "serving/page/index.html",
        "training/extractors/cifar10.safetensors",
        "benchmarks/report.schema.json",
        "benchmarks/report/templates/page.html.j2",
    ):
        assert data in inside


def test_a_project_with_folders_of_the_same_names_is_not_picked_up(
    wheel: Path, tmp_path: Path
) -> None:
    site, project = tmp_path / "site", tmp_path / "project"
    zipfile.ZipFile(wheel).extractall(site)
    for name in ("training", "serving", "benchmarks", "bundle"):
        (project / name).mkdir(parents=True)
        (project / name / "__init__.py").write_text("raise RuntimeError('of the user')")
    code = f"""
import sys
sys.path[:0] = [{str(project)!r}, {str(site)!r}]
sys.path.append({sysconfig.get_paths()["purelib"]!r})
import labelcurve.training.options, labelcurve.serving.settings, labelcurve.benchmarks.cli
assert labelcurve.__file__.startswith({str(site)!r}), labelcurve.__file__
from labelcurve.__main__ import main
sys.argv = ["labelcurve", "train", "--help"]
main()
"""
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=project, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: labelcurve train ")


@pytest.mark.parametrize("copied", [("bundle", "serving"), ("bundle", "training", "benchmarks")])
def test_copies_that_lost_the_links_find_the_folders_beside(
    copied: tuple[str, ...], tmp_path: Path
) -> None:
    for name in copied:
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "labelcurve").mkdir()
    for path in (ROOT / "labelcurve").glob("*.py"):
        shutil.copy(path, tmp_path / "labelcurve")
    module = f"labelcurve.{copied[1]}"
    code = f"import {module}, labelcurve.bundle.store as store; "
    code += f"print({module}.__file__, store.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    places = [str(tmp_path / copied[1] / "__init__.py"), str(tmp_path / "bundle/store.py")]
    assert done.stdout.split() == places

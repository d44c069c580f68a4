"""docs/deploying.md compared with the files it describes; scripts/containers runs its commands."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/deploying.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_readme_has_the_same_four_commands() -> None:
    block = re.search(r"(?ms)^```sh\n(.*?)^```$", PAGE)
    assert block
    assert block[1].count("\n") == 4
    assert block[0] in (ROOT / "README.md").read_text()


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", PAGE):
        assert (ROOT / "docs" / target).exists(), target


@pytest.mark.parametrize("image", ["train", "serve"])
def test_the_images_are_labelled_with_the_project_s_version(image: str) -> None:
    dockerfile = (ROOT / f"Dockerfile.{image}").read_text()
    assert f"\nARG VERSION={PROJECT['version']}\n" in dockerfile


def test_the_budgets_of_the_document_are_those_that_are_checked() -> None:
    said = _of_scripts(
        "from container.images import BUDGET_MB as b; print(b['train'], b['serve'], b['serve-cpu'])"
    )
    budgets = [int(figure) for figure in said.split()]
    sizes = (ROOT / "docs/deploying.md").read_text()
    found = re.findall(r"^\| `(\S+)` \| [\d,]+ MB \| ([\d,]+) MB \|$", sizes, re.MULTILINE)
    assert found == [
        (name, f"{budget:,}")
        for name, budget in zip(("train", "serve", "serve-cpu"), budgets, strict=True)
    ]


def _of_scripts(code: str, *arguments: str) -> str:
    """What code prints that imports the parts of scripts/containers."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(
        command, cwd=ROOT / "scripts", capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


def test_an_exception_of_any_class_is_one_failed_check() -> None:
    said = _of_scripts("""
from container.report import Report
report = Report()
with report.attempt("the first line"):
    "".splitlines()[-1]
print(report.passed, report.failed)
""")
    assert said == "FAILED the first line \n    IndexError: list index out of range\n0 1\n"


def test_a_logged_command_that_does_not_end_is_said_to_be_that(tmp_path: Path) -> None:
    said = _of_scripts(
        """
import sys
from pathlib import Path
from container.engine import Engine, Failed
folder = Path(sys.argv[1])
try:
    Engine(folder).execute(["sleep", "600"], timeout=0.1, log=folder / "log")
except Failed as error:
    print(error)
""",
        str(tmp_path),
    )
    assert said == "sleep 600: no end after 0.1 s\n"


def test_the_bento_needs_what_serving_needs() -> None:
    bento = yaml.safe_load((ROOT / "bentofile.yaml").read_text())
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["serve"]]
    linux = [
        str(Requirement(text.split(";")[0]))
        for text in wanted
        if not (marker := Requirement(text).marker) or marker.evaluate({"sys_platform": "linux"})
    ]
    assert [str(Requirement(text)) for text in bento["python"]["packages"]] == linux

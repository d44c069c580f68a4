"""docs/deploying.md beside what it speaks of; its commands are run by scripts/containers."""

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


def test_the_budgets_of_the_readme_are_those_that_are_checked() -> None:
    code = (
        "from container.images import BUDGET_MB as b; print(b['train'], b['serve'], b['serve-cpu'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT / "scripts",
        capture_output=True,
        text=True,
        check=True,
    )
    train, serve, small = (int(figure) / 1000 for figure in done.stdout.split())
    readme = re.sub(r"\s+", " ", (ROOT / "README.md").read_text())
    assert f"`train` has at most {train:g} GB and `serve` {serve:g} GB, or {small:g} GB" in readme


def test_the_bento_needs_what_serving_needs() -> None:
    bento = yaml.safe_load((ROOT / "bentofile.yaml").read_text())
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["serve"]]
    linux = [
        str(Requirement(text.split(";")[0]))
        for text in wanted
        if not (marker := Requirement(text).marker) or marker.evaluate({"sys_platform": "linux"})
    ]
    assert [str(Requirement(text)) for text in bento["python"]["packages"]] == linux

"""`labelcurve` as a real process: help, version, unknown commands, completion."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from labelcurve import __main__
from labelcurve.__main__ import COMMANDS, main
from labelcurve.benchmarks import cli
from labelcurve.bundle import command

LABELCURVE = str(Path(sys.executable).with_name("labelcurve"))
VERSION = f"labelcurve {importlib.metadata.version('labelcurve')}\n"


def labelcurve(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([LABELCURVE, *arguments], capture_output=True, text=True, check=False)


def test_help_is_one_screen_with_a_line_for_each_command() -> None:
    done = labelcurve("--help")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    for name, each in COMMANDS.items():
        assert [line.split(maxsplit=1) for line in lines].count([name, each.summary]) == 1


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_answer_at_once(option: str) -> None:
    code = """
import atexit, sys
from labelcurve import __main__
atexit.register(lambda: print(*sys.modules))
__main__.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, option], capture_output=True, text=True, check=True
    )
    imported = set(done.stdout.splitlines()[-1].split())
    assert "labelcurve.bundle.errors" in imported
    assert not imported & {"torch", "numpy", "onnxruntime", "tyro", "rich", "PIL", "bentoml"}


@pytest.mark.parametrize(
    ("wrong", "right"), [("trian", "train or pretrain"), ("clasify", "classify")]
)
def test_an_unknown_command_exits_2_and_proposes_the_nearest(wrong: str, right: str) -> None:
    done = labelcurve(wrong, "--fraction", "0.1")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"labelcurve: no command {wrong!r} (perhaps you meant {right})\n")


def test_no_command_exits_2_with_the_help_on_stderr() -> None:
    done = labelcurve()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == labelcurve("--help").stdout


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_every_command_says_its_version(name: str) -> None:
    done = labelcurve(*name.split(), "--version")
    assert (done.returncode, done.stdout) == (0, VERSION)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_under_its_name(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["labelcurve", name, "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        __main__._run(name, ["--help"])
    assert capsys.readouterr().out.startswith(f"usage: labelcurve {name} ")


def test_the_lines_of_help_are_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = labelcurve("bench", "--help").stdout
    lines = [line.strip("│ ") for line in text.splitlines()]
    at = lines.index("--latency-seconds FLOAT") + 1
    assert lines[at : at + 3] == [
        "Duration of the session latency measurement, all models",
        "and batch sizes together; more where three rounds of",
        "them take longer. (default: 20.0)",
    ]
    paragraph = next(line for line in lines if line.startswith("Writes report.html"))
    assert paragraph.endswith("`bench peers` compares the service with others.")


# Of each as a real process.
@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_whose_reader_has_seen_enough_ends_without_a_traceback(name: str) -> None:
    with subprocess.Popen(
        [LABELCURVE, *name.split(), "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()  # as `head` does
        assert process.stderr.read() == b""
    assert process.returncode in (0, 141)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_line_of_the_table_leads_somewhere(name: str) -> None:
    for place in (
        COMMANDS[name].main,
        COMMANDS[name].options,
        *COMMANDS[name].subcommands.values(),
    ):
        module, _, attribute = place.partition(":")
        assert callable(getattr(import_module(module), attribute))


def test_bench_has_the_commands_that_are_completed() -> None:
    assert cli.OTHERS.keys() == COMMANDS["bench"].subcommands.keys()


def test_bash_completes_commands_and_their_options(tmp_path: Path) -> None:
    script = tmp_path / "completion.bash"
    script.write_text(labelcurve("completion", "bash").stdout)

    def completed(*words: str) -> set[str]:
        function = "$(complete -p labelcurve | sed 's/.*-F \\([^ ]*\\).*/\\1/')"
        code = f"source {script}; COMP_WORDS=({' '.join(words)} ''); COMP_CWORD={len(words)}; "
        code += f"{function}; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
        return set(done.stdout.split())

    assert set(COMMANDS) <= completed("labelcurve")
    assert {"--fraction", "--max-minutes"} <= completed("labelcurve", "train")
    assert "--fraction" not in completed("labelcurve", "serve")
    assert {"compare", "render", "peers", "--robustness-images"} <= completed("labelcurve", "bench")
    assert "--null-clients" in completed("labelcurve", "bench", "peers")


@pytest.mark.parametrize(
    ("words", "arguments", "extra", "terminated"),
    [
        (["serve", "--port", "1"], ["--port", "1"], "serve", 0),  # to be stopped is no failure
        (["train"], [], "train", 143),
        (["models", "list"], ["list"], "serve", 143),
        (["bench"], [], "bench", 143),
        (["completion", "bash"], ["bash"], None, 143),
        (["trian"], [], None, 143),
        ([], [], None, 143),
    ],
)
def test_a_command_is_entered_with_its_extra_and_what_a_signal_means_to_it(
    words: list[str],
    arguments: list[str],
    extra: str | None,
    terminated: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entered: list[Any] = []

    def enter(main: Any, given: Any, **options: Any) -> None:
        entered.append((main.args, given, options))

    monkeypatch.setattr(command, "enter", enter)
    monkeypatch.setattr(sys, "argv", ["/usr/bin/x", *words])
    main()
    assert sys.argv[0] == "labelcurve"
    name = words[0] if words else ""
    assert entered == [((name,), arguments, {"extra": extra, "terminated": terminated})]

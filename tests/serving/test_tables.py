from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from labelcurve.bundle.errors import LabelcurveError
from labelcurve.serving.models.answer import Class
from labelcurve.serving.tables import Answer, everything, sorted_out

TWO: list[Class] = [{"label": "a", "score": 0.75}, {"label": "b", "score": 0.25}]
ANSWERS = (
    Answer(Path("1.png"), TWO, accepted=True, set=["a", "é"]),
    Answer(Path("2.png"), TWO[:1], accepted=False, set=["a"]),
    Answer(Path("3.png"), (), "no image"),
)


def test_a_table_has_a_column_for_all_that_was_asked_for(tmp_path: Path) -> None:
    with everything(tmp_path / "all.csv", 2, accept=True, sets=True) as write:
        for answer in ANSWERS:
            write(answer)
        assert list(tmp_path.iterdir()) == []  # complete or not there
    assert (tmp_path / "all.csv").read_bytes().decode() == (
        "path,label,score,label_2,score_2,accepted,set,error\r\n"
        '1.png,a,0.75,b,0.25,true,"[""a"", ""é""]",\r\n'
        '2.png,a,0.75,,,false,"[""a""]",\r\n'
        "3.png,,,,,,,no image\r\n"
    )
    with everything(tmp_path / "plain.csv", 1, accept=False, sets=False) as write:
        write(ANSWERS[1])
    assert (tmp_path / "plain.csv").read_text().splitlines() == [
        "path,label,score,error", "2.png,a,0.75,",
    ]  # fmt: skip


def test_the_accepted_and_those_to_ask_are_apart(tmp_path: Path) -> None:
    with sorted_out(tmp_path / "new/out", sets=True) as write:
        for answer in ANSWERS:
            write(answer)
    read = {path.name: path.read_text().splitlines() for path in (tmp_path / "new/out").iterdir()}
    assert read == {
        "accepted.csv": ["path,label,score,set", '1.png,a,0.75,"[""a"", ""é""]"'],
        "ask.csv": [
            "path,label,score,set,error", '2.png,a,0.75,"[""a""]",', "3.png,,,,no image",
        ],
    }  # fmt: skip
    with sorted_out(tmp_path / "plain", sets=False) as write:
        write(ANSWERS[0])
    assert (tmp_path / "plain/accepted.csv").read_text() == "path,label,score\n1.png,a,0.75\n"
    assert (tmp_path / "plain/ask.csv").read_text() == "path,label,score,error\n"


def test_tables_of_a_run_that_breaks_off_are_not_there(tmp_path: Path) -> None:
    with suppress(KeyboardInterrupt), sorted_out(tmp_path, sets=False) as write:
        write(ANSWERS[0])
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(LabelcurveError, match="there is no folder"):
        everything(tmp_path / "none/a.csv", 1, accept=False, sets=False).__enter__()

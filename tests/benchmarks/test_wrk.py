from __future__ import annotations

import pytest

from benchmarks import wrk
from bundle.errors import LabelcurveError

SHOWN = """Running 5s test @ http://127.0.0.1:3000/classify
  1 threads and 4 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     4.10ms  510.00us  9.00ms   80.00%
    Req/Sec     1.00k    20.00     1.10k    70.00%
  Latency Distribution
     50%    {median}
     99%    7.77ms
  5000 requests in 5.00s, 1.23MB read
{more}Requests/sec:   1000.25
Transfer/sec:    250.00KB
"""


@pytest.mark.parametrize(
    ("median", "ms"), [("4.05ms", 4.05), ("950.00us", 0.95), ("1.20s", 1200.0)]
)
def test_reads_what_wrk_prints(median: str, ms: float) -> None:
    rate, found, failed = wrk.parse(SHOWN.format(median=median, more=""))
    assert (rate, failed) == (1000.25, 0)
    assert found == pytest.approx(ms)


def test_failures_are_counted() -> None:
    more = "  Socket errors: connect 1, read 2, write 0, timeout 3\n"
    more += "  Non-2xx or 3xx responses: 40\n"
    assert wrk.parse(SHOWN.format(median="4.05ms", more=more))[2] == 46


def test_no_result_is_said() -> None:
    with pytest.raises(LabelcurveError, match="wrk printed no result"):
        wrk.parse("unable to connect to 127.0.0.1:9 Connection refused")


def test_without_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(SystemExit, match=r"no command `wrk` .*apt-get install wrk"):
        wrk.main([])

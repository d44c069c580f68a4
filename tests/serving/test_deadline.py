from __future__ import annotations

import asyncio
from typing import Any

import pytest

from labelcurve.serving.deadline import Clock, Deadline

SOON, NEVER = 0.01, 1000.0


def waiting() -> asyncio.Task[Any]:
    return asyncio.create_task(asyncio.Event().wait())


async def ended(task: asyncio.Task[Any]) -> bool:
    with pytest.raises(asyncio.CancelledError):
        await task
    return True


def test_every_task_is_cancelled_when_its_time_is_over() -> None:
    async def main() -> None:
        clock = Clock(SOON)
        tasks = [waiting() for _ in range(3)]
        deadlines = []
        for task in tasks:
            deadlines.append(Deadline(task, clock))
            await asyncio.sleep(0)  # so that the times differ
        assert not any(deadline.passed for deadline in deadlines)
        for task in tasks:
            assert await ended(task)
        assert all(deadline.passed for deadline in deadlines)
        later = Deadline(again := waiting(), clock)  # the clock has stopped, and starts again
        assert await ended(again)
        assert later.passed

    asyncio.run(main())


def test_what_is_closed_or_moved_in_time_does_not_pass() -> None:
    async def main() -> None:
        clock, other = Clock(SOON), Clock(NEVER)
        closed, moved = Deadline(waiting(), clock), Deadline(waiting(), clock)
        closed.close()
        closed.close()
        before = asyncio.get_running_loop().time()
        passes = moved.move(other)
        assert before + NEVER <= passes <= asyncio.get_running_loop().time() + NEVER
        last = Deadline(task := waiting(), clock)
        assert await ended(task)
        assert last.passed
        assert not closed.passed
        assert not moved.passed
        moved.close()

    asyncio.run(main())


def test_one_timer_is_enough_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        timers: list[float] = []

        def call_at(when: float, *arguments: Any, **options: Any) -> asyncio.TimerHandle:
            timers.append(when)
            return set_timer(when, *arguments, **options)

        set_timer = loop.call_at
        monkeypatch.setattr(loop, "call_at", call_at)
        clock = Clock(NEVER)
        task = waiting()
        for _ in range(100):
            Deadline(task, clock).close()
        assert len(timers) == 1

    asyncio.run(main())

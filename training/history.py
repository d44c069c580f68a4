"""The run as it goes on, for TensorBoard."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from bundle.manifest import Epoch

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class EventWriter:
    """Writes each epoch as TensorBoard events; readers of bundles ignore the dot folder.

    Args:
        folder: of the events.
        after: epochs that were written before an interruption; what is there of later ones is void.
        say: is told when no more can be written; the run goes on without.
    """

    def __init__(self, folder: Path, after: int = 0, say: Callable[[str], None] = print) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes half a second

        self._folder, self._say = folder, say
        self._writer: SummaryWriter | None = None
        try:
            self._writer = SummaryWriter(str(folder), purge_step=after + 1 if after else None)
        except OSError as error:
            self._give_up(error)

    def write(self, epoch: Epoch) -> None:
        """Adds one epoch's scalars."""
        if self._writer is None:
            return
        try:
            for name, value in epoch.model_dump(exclude={"epoch"}).items():
                self._writer.add_scalar(name, value, epoch.epoch)
            self._writer.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._writer = None
        self._say(
            f"the TensorBoard events in {self._folder} cannot be written "
            f"({error.strerror or error}): the run goes on without them"
        )

    def __enter__(self) -> Self:
        # TensorBoard writes from a thread: what goes wrong there is raised here at the next call,
        # and need not be printed as a traceback besides.
        before = self._hook = threading.excepthook

        def hook(failed: threading.ExceptHookArgs) -> None:
            if not isinstance(failed.exc_value, OSError):
                before(failed)

        threading.excepthook = hook
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            try:
                self._writer.close()
            except OSError as problem:
                self._give_up(problem)
        threading.excepthook = self._hook

"""The run as it goes on, for TensorBoard."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from torch.utils.tensorboard import SummaryWriter

from bundle.manifest import Epoch


class EventWriter:
    """Writes each epoch as TensorBoard events; readers of bundles ignore the dot folder."""

    def __init__(self, folder: Path) -> None:
        self._writer = SummaryWriter(str(folder))

    def write(self, epoch: Epoch) -> None:
        """Adds one epoch's scalars."""
        for name, value in epoch.model_dump(exclude={"epoch"}).items():
            self._writer.add_scalar(name, value, epoch.epoch)
        self._writer.flush()

    def __enter__(self) -> EventWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.close()

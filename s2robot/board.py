"""TensorBoard beside metrics.jsonl, where it is installed (`pip install 's2robot[train]'`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any


class Board:
    """Writes the rows of metrics.jsonl to `<folder>`; without TensorBoard it does nothing."""

    def __init__(self, folder: Path, start: int) -> None:
        """start: the step a resumed run goes on from; what an interrupted one wrote beyond it is hidden."""
        self._writer: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self._writer = SummaryWriter(str(folder), purge_step=start + 1)

    def write(self, row: Mapping[str, Any]) -> None:
        """The numbers of one step."""
        for name, value in row.items() if self._writer else ():
            if name not in ("step", "seconds") and value is not None:
                self._writer.add_scalar(name.replace("valid_", "valid/"), value, row["step"])

    def close(self) -> None:
        if self._writer:
            self._writer.close()

    def __enter__(self) -> Board:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

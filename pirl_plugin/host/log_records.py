"""VISSL's log records: long ones go to a file, and its launcher leaves it to ours to say how a run ended."""

from __future__ import annotations

import logging
from pathlib import Path

LONGEST = 12  # lines; longer records go to the file


class LongRecordsToFile(logging.Filter):
    """Shortens records of more than LONGEST lines, below warning level, to their first line.

    The full text goes to details.txt in the run's folder, which each start overwrites.

    Args:
        folder: the run's folder.
        rank: only rank 0 writes.
    """

    def __init__(self, folder: str | Path, rank: int) -> None:
        super().__init__()
        self.path, self.rank = Path(folder) / "details.txt", rank
        if rank == 0:
            self.path.unlink(missing_ok=True)

    def filter(self, record: logging.LogRecord) -> bool:
        """Always true: nothing is dropped."""
        try:
            text = record.getMessage()
        except (TypeError, ValueError):  # a broken format, which the handler reports
            return True
        count = text.count("\n") + 1
        if count <= LONGEST or record.levelno >= logging.WARNING:
            return True
        first = text.split("\n", 1)[0].strip()
        if self.rank == 0:
            try:
                with self.path.open("a", encoding="utf-8", errors="surrogateescape") as file:
                    file.write(f"{text}\n\n")
            except OSError:  # a full disk: keep it in the log
                return True
        # The other handlers of this record also get the short form.
        record.msg, record.args = f"{first[:100]} ... ({count} lines in {self.path})", ()
        return True


class WithoutLastWords(logging.Filter):
    """Drops what VISSL's launcher logs of an error, and after it; pirl_plugin.launch.launcher says what happened."""

    ended = False

    def filter(self, record: logging.LogRecord) -> bool:
        if record.module != "distributed_launcher":
            return True
        self.ended = self.ended or str(record.msg).startswith("Wrapping up, caught exception")
        return not self.ended


def shorten(logger: logging.Logger, folder: str | Path, rank: int) -> None:
    """Add one `LongRecordsToFile` to all handlers of a logger."""
    long_records = LongRecordsToFile(folder, rank)
    for handler in logger.handlers:
        handler.addFilter(long_records)

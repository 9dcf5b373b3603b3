"""Prefect artifacts of a run: progress while it runs, tables and images when it is done."""

import base64
import re
import time
from pathlib import Path
from typing import cast
from uuid import UUID

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from flows.display import HEADINGS, Summary, markdown_verdict

MAX_IMAGE_BYTES = 2_000_000
UPDATE_SECONDS = 5.0


class StageProgress:
    """The progress artifact of a stage; created at its first progress line, updated every five seconds."""

    def __init__(self, stage: str) -> None:
        self._key = re.sub(r"[^a-z0-9]+", "-", f"progress-{stage}".lower()).strip("-")
        self._stage = stage
        self._artifact: UUID | None = None
        self._last = float("-inf")

    def update(self, done: int, total: int, text: str) -> None:
        """Update the artifact if the last update is old enough."""
        now = time.monotonic()
        if now - self._last < UPDATE_SECONDS:
            return
        self._last = now
        percent = 100.0 * done / max(total, 1)
        if self._artifact is None:
            self._artifact = cast(UUID, create_progress_artifact(percent, self._key, f"{self._stage}: {text}"))
        else:
            update_progress_artifact(self._artifact, percent, f"{self._stage}: {text}")

    def finish(self) -> None:
        """Set the artifact to 100 %."""
        if self._artifact is not None:
            update_progress_artifact(self._artifact, 100.0, f"{self._stage}: done")


def publish(summary: Summary, figure: Path, run: str) -> None:
    """Publish the outcome on Prefect's pages: scores, verdict, samples, link to the report."""
    table = [{"score": row.name, **dict(zip(HEADINGS, row.cells, strict=True))} for row in summary.rows]
    create_table_artifact(table, "scores", f"Base → aligned in percent; {summary.confidence} % intervals. Run {run}.")
    create_markdown_artifact(markdown_verdict(summary), "verdict", f"May this model become champion? Run {run}.")
    if figure.is_file() and figure.stat().st_size <= MAX_IMAGE_BYTES:
        data = base64.b64encode(figure.read_bytes()).decode()
        create_markdown_artifact(
            f"![samples](data:image/png;base64,{data})", "samples", f"Base and aligned. Run {run}."
        )
    note = f"The page is {summary.report}; browsers open file links only when they are pasted."
    create_link_artifact(summary.report.as_uri(), str(summary.report), "report", note)

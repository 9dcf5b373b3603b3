"""Progress as lines on stdout, ``PROGRESS <done>/<total> <unit> <text>``: readable in a log, parsed by the flow."""

import time

SECONDS_BETWEEN_LINES = 2.0


class Progress:
    """Progress of a stage, printed at most every two seconds and always at its end.

    Args:
        total: Number of units.
        unit: The unit in one word: ``images``, ``steps``, ``prompts``.
        start: Units done before this process began (a resumed run); they do not count for its speed.
    """

    def __init__(self, total: int, unit: str, start: int = 0) -> None:
        self.total = total
        self.unit = unit
        self._start = start
        self._began = time.monotonic()
        self._last_line = float("-inf")
        self._last_done = -1

    def update(self, done: int, text: str = "") -> None:
        """Report that ``done`` units are finished; ``text`` is appended to the line."""
        now = time.monotonic()
        finished = done >= self.total and done != self._last_done
        if not finished and now - self._last_line < SECONDS_BETWEEN_LINES:
            return
        self._last_line, self._last_done = now, done
        words = ", ".join(filter(None, [*self._times(done, now - self._began), text]))
        print(f"PROGRESS {done}/{self.total} {self.unit} {words}", flush=True)

    def _times(self, done: int, elapsed: float) -> list[str]:
        times = [f"{format_duration(elapsed)} elapsed"]
        if self._start < done < self.total:
            times.append(f"{format_duration(elapsed / (done - self._start) * (self.total - done))} left")
        return times


def format_duration(seconds: float) -> str:
    """Format 75 s as ``1:15`` and 3,675 s as ``1:01:15``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

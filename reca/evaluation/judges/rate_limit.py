"""How fast and for how much a judge is asked."""

import asyncio
import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Backoff:
    """Waits between attempts: doubling, with a random part, so that many clients do not come back at once."""

    attempts: int = 6
    first_seconds: float = 1.0
    longest_seconds: float = 60.0

    def wait(self, attempt: int, asked_for: float | None = None) -> float:
        """Seconds before the next attempt.

        Args:
            attempt: Attempts made so far, from 1.
            asked_for: What the endpoint asked for (Retry-After); not more than the longest wait is granted.
        """
        wait = min(self.first_seconds * 2 ** (attempt - 1), self.longest_seconds)
        if asked_for is not None:
            return min(max(asked_for, 0.0), self.longest_seconds)
        return wait * random.uniform(0.5, 1.0)


class Pace:
    """Lets requests go at even distances, and holds all of them when the endpoint says so.

    Args:
        requests_per_minute: Requests a minute.
    """

    def __init__(self, requests_per_minute: float) -> None:
        self._distance = 60 / requests_per_minute
        self._next = 0.0

    async def turn(self) -> None:
        """Wait for one's turn."""
        now = asyncio.get_running_loop().time()
        mine = max(self._next, now)
        self._next = mine + self._distance
        await asyncio.sleep(mine - now)

    def hold(self, seconds: float) -> None:
        """Let nobody go for a while."""
        self._next = max(self._next, asyncio.get_running_loop().time() + seconds)


class Budget:
    """Keeps what is spent, together with what is under way, below a ceiling.

    Args:
        ceiling: US dollars; ``None`` for no ceiling.
    """

    def __init__(self, ceiling: float | None) -> None:
        self.ceiling = ceiling
        self.spent = 0.0
        self._reserved = 0.0
        self._changed = asyncio.Condition()

    async def reserve(self, dollars: float) -> bool:
        """Set money aside for one attempt, waiting for others to be settled; ``False`` if it will not suffice."""
        async with self._changed:
            while self.ceiling is not None and self.spent + self._reserved + dollars > self.ceiling:
                if self._reserved <= 0:
                    return False
                await self._changed.wait()
            self._reserved += dollars
            return True

    async def settle(self, reserved: float, spent: float) -> None:
        """Give back what was set aside and note what was spent."""
        async with self._changed:
            self._reserved = max(self._reserved - reserved, 0.0) if self._reserved - reserved > 1e-12 else 0.0
            self.spent += spent
            self._changed.notify_all()

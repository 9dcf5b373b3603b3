"""Files on web servers as streams that survive lost connections."""

import io
import time
import urllib.error
import urllib.request
from http.client import HTTPException, HTTPResponse
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from reca.runtime.errors import UserError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

ATTEMPTS = 6
FIRST_WAIT_SECONDS = 1.0
"""Wait before the second attempt; it doubles with every further failure in a row."""
LONGEST_WAIT_SECONDS = 60.0
TIMEOUT_SECONDS = 30.0
RETRYABLE_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP statuses that are retried."""


class HttpStream(io.RawIOBase):
    """The bytes of a URL in order; after a lost connection the download resumes at the same byte.

    Args:
        url: ``http://`` or ``https://``.

    Raises:
        UserError: On reading: the server refuses, or fails ``ATTEMPTS`` times in a row.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._response: HTTPResponse | None = None
        self._position = 0
        self._version = ""  # ETag or modification time
        self._failures = 0

    def readable(self) -> bool:
        """Return ``True``."""
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Read the next bytes; return their number, 0 at the end of the file."""
        while True:
            try:
                self._response = self._response or self._connect()
                count = self._response.readinto(buffer)
                # http.client reports a connection that ended early as end of file
                if not count and self._response.length:
                    raise ConnectionError(f"the connection ended {self._response.length} bytes early")
            except (OSError, HTTPException) as error:
                self._recover(error)
                continue
            self._failures = 0
            self._position += count
            return count

    def close(self) -> None:
        """Close the connection."""
        if self._response is not None:
            self._response.close()
        super().close()

    def _connect(self) -> HTTPResponse:
        request = urllib.request.Request(self._url, headers={"User-Agent": "reca"})
        if self._position:
            request.add_header("Range", f"bytes={self._position}-")
        response: HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
        version = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        if self._position and version != self._version:
            raise UserError(f"{public_url(self._url)} changed during the download; run again")
        self._version = version
        if self._position and response.status != 206:  # a server without ranges starts from the beginning
            self._skip(response, self._position)
        return response

    def _skip(self, response: HTTPResponse, count: int) -> None:
        while count:
            size = len(response.read(min(count, 1 << 20)))
            if not size:
                raise ConnectionError("the connection ended early")
            count -= size

    def _recover(self, error: Exception) -> None:
        """Wait before the next attempt, or give up."""
        status = error.code if isinstance(error, urllib.error.HTTPError) else None
        self._failures += 1
        problem = f"HTTP {status}" if status else str(getattr(error, "reason", error)) or type(error).__name__
        if (status and status not in RETRYABLE_STATUS) or self._failures >= ATTEMPTS:
            raise UserError(
                f"cannot read {public_url(self._url)}: {problem} (attempt {self._failures}); "
                "check data.urls and the network, then run again"
            ) from None
        if self._response is not None:
            self._response.close()
            self._response = None
        wait = min(FIRST_WAIT_SECONDS * 2 ** (self._failures - 1), LONGEST_WAIT_SECONDS)
        print(f"{public_url(self._url)}: {problem}; next attempt in {wait:.0f} s", flush=True)
        time.sleep(wait)


def is_url(pattern: str) -> bool:
    """Return whether ``pattern`` is an HTTP URL."""
    return pattern.startswith(("http://", "https://"))


def public_url(url: str) -> str:
    """Return the URL without its possibly secret parts: user, password and query (signatures)."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))

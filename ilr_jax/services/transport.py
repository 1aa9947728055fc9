"""One request to an OpenAI-compatible endpoint, through the `openai` client, and what its outcome means: a reply, or one of three errors.

Not here: trying again (`endpoint`). The client's own retries are off. The key is in the request's header and nowhere else: errors are
rewritten without it, and without what they were raised from.
"""

import json
import math
import time
from collections.abc import Iterable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

AGAIN = (408, 409, 429)  # and all from 500: worth another attempt
REFUSED = (400, 413, 422)  # this question is not answered; others may be
LARGEST = 64 << 20  # bytes of a reply
SHOWN = 300  # characters of what an endpoint says of an error


class EndpointError(ValueError):
    """The endpoint cannot be used any further: the message says why and what to do. What was answered before is kept."""


class Again(Exception):
    """Worth another attempt, after at least `after` seconds."""

    def __init__(self, reason: str, after: float = 0.0):
        super().__init__(reason)
        self.after = after


class Refused(Exception):
    """The endpoint will not answer this question."""


def check_url(base_url: str) -> None:
    """Raise ValueError unless it is an address without credentials, which would end up in records."""
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"base_url: wanted http://HOST/v1 or https://HOST/v1, got {parts.scheme}://{parts.hostname or ''}")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(f"base_url for {parts.hostname}: wanted no user, password or query in it; give the key by key_name")


class Transport:
    """The way to `base_url`; a reply must be there `timeout` seconds after its request."""

    def __init__(self, base_url: str, key: str, timeout: float):
        check_url(base_url)
        try:
            import openai  # an optional dependency
        except ImportError as error:
            raise ValueError("endpoints are asked through the openai client, which is missing: pip install -e '.[judge]'") from error
        self.base_url, self.timeout, self._key = base_url, timeout, key
        self._openai = openai
        self._client = openai.OpenAI(api_key=key or "none", base_url=base_url, max_retries=0, timeout=timeout)

    def send(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The reply to a POST of `body`, a JSON object. Raises Again, Refused or EndpointError."""
        import httpx2  # what the openai client is built on

        resource: Any = self._client.embeddings if path == "embeddings" else self._client.chat.completions
        try:
            with resource.with_streaming_response.create(**body) as response:
                return _object(self._whole(response.iter_bytes()))
        except self._openai.APIStatusError as error:
            raise self._meaning(error) from None
        except (self._openai.APIConnectionError, httpx2.HTTPError) as error:  # time-outs among them
            raise Again(f"{type(error).__name__}: {self.clean(str(error))}") from None

    def _whole(self, chunks: Iterable[bytes]) -> bytes:
        """The reply's bytes; the client's time-out is one of silence, so a reply that trickles in is given up here."""
        start, data = time.monotonic(), bytearray()
        for chunk in chunks:
            data += chunk
            if time.monotonic() - start > self.timeout:
                raise Again(f"the reply was not complete after {self.timeout:g} s")
            if len(data) > LARGEST:
                raise Again(f"the reply is larger than {LARGEST >> 20} MiB")
        return bytes(data)

    def _meaning(self, error: Any) -> Exception:
        """What an HTTP error leads to."""
        status, said = error.status_code, f"HTTP {error.status_code}: {self.clean(error.message)}"
        if error.code == "insufficient_quota" or status in (401, 402, 403):
            return EndpointError(f"{said}; check the key, what it may use, and what is paid for")
        if status in AGAIN or status >= 500:
            return Again(said, _seconds(error.response.headers))
        if status in REFUSED:
            return Refused(said)
        return EndpointError(f"{said}; check base_url and the model's name")

    def clean(self, text: str) -> str:
        """What an endpoint said, on one line and short; it may have sent the key back."""
        line = " ".join(text.split())
        return (line.replace(self._key, "[key]") if self._key else line)[:SHOWN]


def _object(data: bytes) -> dict[str, Any]:
    try:
        reply = json.loads(data)
    except (ValueError, RecursionError):
        reply = None
    if not isinstance(reply, dict):
        raise Again(f"wanted a reply in JSON, got {len(data)} bytes that are none")
    return reply


def _seconds(headers: Mapping[str, str]) -> float:
    """What `Retry-After` asks for, in seconds or as a date; 0 where it asks for nothing that can be read."""
    text = headers.get("retry-after", "")
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, TypeError):
            return 0.0
    return max(seconds, 0.0) if math.isfinite(seconds) else 0.0

"""One request to the front and its answer, in ASGI's terms, and what is counted of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from server.front_rules import PASSED_BACK, Refused, check_length

RETRY_AFTER_SECONDS = 5
UNKNOWN = "(unknown)"
"""Who a request counts for that no site has signed; not a name that a site can have."""


@dataclass
class Traffic:
    """What a site sent and got since the front was made: requests, bodies in bytes up and down, requests refused."""

    requests: int = 0
    refused: int = 0
    bytes_up: int = 0
    bytes_down: int = 0


class Left(Exception):
    """The site closed the connection before its request was complete."""


@dataclass
class Exchange:
    """One request and its answer, in ASGI's terms."""

    scope: Any
    receive: Any
    send: Any
    site: str = UNKNOWN
    answered: bool = False
    headers: dict[bytes, bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.headers = dict(self.scope["headers"])

    @property
    def target(self) -> bytes:
        """What the request asks for, as it was sent."""
        path, query = self.scope["raw_path"], self.scope["query_string"]
        return bytes(path + b"?" + query if query else path)

    async def body(self, largest: int, traffic: Traffic) -> AsyncIterator[bytes]:
        """The body as it comes in, never more than ``largest`` bytes."""
        received, more = 0, True
        while more:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise Left
            chunk = message.get("body", b"")
            received += len(chunk)
            check_length(received, largest)
            traffic.bytes_up += len(chunk)
            if chunk:
                yield bytes(chunk)
            more = message.get("more_body", False)

    async def give_back(self, answer: httpx.Response, traffic: Traffic) -> None:
        """Send the SuperLink's answer to the site as it comes."""
        headers = [(name.encode(), answer.headers[name].encode()) for name in PASSED_BACK if name in answer.headers]
        self.answered = True
        await self.send({"type": "http.response.start", "status": answer.status_code, "headers": headers})
        # One that was read whole already is given on whole; bodies are never encoded, the front asks for that.
        chunks = answer.aiter_bytes() if answer.is_stream_consumed else answer.aiter_raw()
        async for chunk in chunks:
            traffic.bytes_down += len(chunk)
            await self.send({"type": "http.response.body", "body": chunk, "more_body": True})
        await self.send({"type": "http.response.body"})

    async def refuse(self, refused: Refused) -> None:
        """Say why not, and close: what is left of the body is not read.

        An answer that was cut off has its status already, and the server closes the connection under it.
        """
        if self.answered:
            return
        text = f"{refused.sentence}\n".encode()
        headers = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", str(len(text)).encode()),
            (b"connection", b"close"),
        ]
        if refused.status == 503:
            headers.append((b"retry-after", str(RETRY_AFTER_SECONDS).encode()))
        await self.send({"type": "http.response.start", "status": refused.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": text})

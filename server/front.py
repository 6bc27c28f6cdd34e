"""The front: the one door from outside to the SuperLink, and what it lets through.

A SuperLink serves the sites, the operators and the run processes on one port and asks no operator for a password, so
whoever reaches that port can send code to every hospital. It therefore listens on loopback, and sites reach it through
this TLS proxy, which passes the few requests that a SuperNode makes, from sites that the registry knows, and no more.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h11
import httpx
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.front_exchange import UNKNOWN, Exchange, Left, Traffic
from server.front_rules import PASSED_ON, PULL_MESSAGES, Refused, check_body, check_route, largest_body, signed_by
from server.registry import Registry
from shared_models.errors import BadInput

HOLD_SECONDS = 15.0  # a SuperNode gives up after 30 s without an answer
LOOK_SECONDS = 3.0  # how often it is looked for a message meanwhile, as often as a SuperNode would ask
WAKE_SECONDS = 0.1  # how soon it is looked for one after `wake`
LARGEST_HEADERS = 16 * 1024  # bytes; a SuperNode sends about 1 KB
REQUEST_SECONDS = 10  # from connecting, or from the first byte of a later request, to the end of the headers
KEEP_ALIVE_SECONDS = 15  # a SuperNode asks every 3 s
EXCHANGE_SECONDS = 600  # one whole request and answer; 5 MB at 70 kbit/s
MOST_CONNECTIONS = 256
MOST_REQUESTS_PER_SITE = 16  # at the same time; a SuperNode makes 4
LOG_SECONDS = 60  # at most one event a site in this time

_log = logging.getLogger(__name__)


@dataclass
class _Told:
    """When a site's refusals were last told of, in monotonic seconds, and how many came since."""

    at: float = float("-inf")
    since: int = 0


class Front:
    """A TLS proxy in a thread of its own, from the sites to one SuperLink.

    Args:
        listen: host and port to listen on; port 0 takes a free one.
        certificate: what sites see, PEM with its chain.
        key: the private key of it, PEM; its plain text stays in memory when it is encrypted.
        passphrase: opens the key; None for a key that is not encrypted.
        upstream: the SuperLink, such as ``https://127.0.0.1:9092``; may be set anew at any time.
        upstream_ca: the certificate that the SuperLink's own must be issued by.
        registry: the sites; a change of it holds from the next request on. The front reads it in its own thread.
        on_event: called in the front's thread as ``on_event("front-refused", site=…, status=…, reason=…, refused=…)``,
            where ``refused`` counts the refusals of this site since the last such event, at most one a minute.

    Raises:
        BadInput: the certificate, its key or the passphrase does not fit.
    """

    def __init__(
        self,
        *,
        listen: tuple[str, int],
        certificate: Path,
        key: Path,
        passphrase: bytes | None,
        upstream: str,
        upstream_ca: Path,
        registry: Registry,
        on_event: Callable[..., None],
    ) -> None:
        self.listen = listen
        self.upstream = upstream
        self.address = listen
        self._tls = _server_context(certificate, key, passphrase)
        self._upstream_tls = _client_context(upstream_ca)
        self._registry = registry
        self._on_event = on_event
        self._traffic: defaultdict[str, Traffic] = defaultdict(Traffic)
        self._told: defaultdict[str, _Told] = defaultdict(_Told)
        self._in_flight: Counter[str] = Counter()
        self._client: httpx.AsyncClient
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self._wakes = 0

    def start(self) -> None:
        """Listen, in a thread; ``address`` is then the host and port that were taken.

        Raises:
            BadInput: the address cannot be listened on.
            RuntimeError: the thread failed.
        """
        host, port = self.listen
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listening = socket.create_server((host, port), family=family, backlog=128)
        except OSError as error:
            reason = error.strerror or error
            raise BadInput(f"the front cannot listen on {host}:{port}: {reason}; free it, or choose another") from None
        self.address = (host, int(listening.getsockname()[1]))
        self._server = uvicorn.Server(self._configuration())
        self._thread = threading.Thread(target=self._run, args=(self._server, listening), name="front", daemon=True)
        self._thread.start()
        while self._thread.is_alive() and not self._server.started:
            time.sleep(0.01)
        if not self._server.started:
            raise RuntimeError("the front stopped before it served; the error of its thread says why")

    def stop(self) -> None:
        """Stop listening; requests under way get 5 s to end."""
        if self._server is None or self._thread is None:
            return
        self._server.should_exit = True
        self._thread.join()

    def wake(self) -> None:
        """There may be a message: let the sites that wait for one look at once."""
        self._wakes += 1

    @property
    def is_alive(self) -> bool:
        """Whether the front serves."""
        return self._thread is not None and self._thread.is_alive()

    def traffic(self) -> dict[str, Traffic]:
        """A copy of the counters of each site, and of `UNKNOWN`."""
        return {site: replace(counted) for site, counted in self._traffic.copy().items()}

    def _configuration(self) -> uvicorn.Config:
        return uvicorn.Config(
            self._answer,
            http=_Connection,
            ws="none",
            lifespan="off",
            interface="asgi3",
            # Its warnings could be made to fill a disk by anyone who can connect; refusals are told by on_event.
            log_config=None,
            log_level="critical",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=5,
            h11_max_incomplete_event_size=LARGEST_HEADERS,
            ssl_context_factory=lambda _config, _default: self._tls,
        )

    def _run(self, server: uvicorn.Server, listening: socket.socket) -> None:
        async def serve() -> None:
            async with httpx.AsyncClient(
                verify=self._upstream_tls,
                # The site gives up after 30 s without an answer.
                timeout=httpx.Timeout(30, connect=5),
                # The SuperLink closes an idle connection after 5 s; one that is closed as we write costs a retry.
                limits=httpx.Limits(max_connections=MOST_CONNECTIONS, keepalive_expiry=3),
                # A proxy of the environment is for the way out, not for loopback.
                trust_env=False,
            ) as self._client:
                await server.serve(sockets=[listening])

        with listening, asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
            runner.run(serve())

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        """The ASGI application: one request, checked and passed on, or refused."""
        exchange = Exchange(scope, receive, send)
        try:
            async with asyncio.timeout(EXCHANGE_SECONDS):
                await self._pass_on(exchange)
        except Left:
            pass
        except Refused as refused:
            await self._refuse(exchange, refused)
        except TimeoutError:
            await self._refuse(exchange, Refused(503, f"not done in {EXCHANGE_SECONDS} s"))
        except httpx.TransportError as error:
            await self._refuse(exchange, Refused(503, f"the SuperLink does not answer ({type(error).__name__})"))
        except Exception:
            _log.exception("the front failed to answer")
            await self._refuse(exchange, Refused(503, "the front failed"))

    async def _pass_on(self, exchange: Exchange) -> None:
        # Everything that can be refused is, before a byte of the body is read.
        path = check_route(exchange.scope["method"], exchange.target)
        exchange.site = site = signed_by(exchange.headers, self._registry, path)
        largest = largest_body(path)
        length = check_body(exchange.headers, largest)
        if self._in_flight[site] >= MOST_REQUESTS_PER_SITE:
            raise Refused(503, f"more than {MOST_REQUESTS_PER_SITE} requests at the same time")
        traffic = self._traffic[site]
        traffic.requests += 1
        headers = [(name, exchange.headers[name]) for name in PASSED_ON if name in exchange.headers]
        headers.append((b"accept-encoding", b"identity"))
        if length is not None:
            headers.append((b"content-length", str(length).encode()))
        self._in_flight[site] += 1
        try:
            if path == PULL_MESSAGES:
                await self._hold(exchange, path, headers, largest, traffic)
                return
            content = exchange.body(largest, traffic)
            async with self._client.stream("POST", self.upstream + path, headers=headers, content=content) as answer:
                _check(answer)
                await exchange.give_back(answer, traffic)
        finally:
            self._in_flight[site] -= 1

    async def _hold(
        self, exchange: Exchange, path: str, headers: list[tuple[bytes, bytes]], largest: int, traffic: Traffic
    ) -> None:
        """Answers a site that asks for its messages when there is one, or when it has waited long enough.

        A SuperNode sleeps 3 s after an empty answer, whatever comes meanwhile.
        """
        content = b"".join([chunk async for chunk in exchange.body(largest, traffic)])
        last_look, wakes = 0.0, self._wakes
        gone = asyncio.ensure_future(exchange.receive())  # nothing comes any more but the end of the connection
        end = time.monotonic() + HOLD_SECONDS
        try:
            while True:
                if self._wakes != wakes or time.monotonic() - last_look > LOOK_SECONDS:
                    last_look, wakes = time.monotonic(), self._wakes
                    answer = await self._client.post(self.upstream + path, headers=headers, content=content)
                    _check(answer)
                    if answer.content or not answer.is_success or time.monotonic() > end:
                        await exchange.give_back(answer, traffic)
                        return
                await asyncio.wait([gone], timeout=WAKE_SECONDS)
                if gone.done():
                    raise Left
                if self._server is None or self._server.should_exit:
                    # Cut off, it would look like an error of the SuperLink, which a SuperNode does not survive.
                    raise Refused(503, "the front is being stopped")
                signed_by(exchange.headers, self._registry, path)  # it may have been suspended meanwhile
        finally:
            gone.cancel()

    async def _refuse(self, exchange: Exchange, refused: Refused) -> None:
        exchange.site = refused.site or exchange.site
        self._traffic[exchange.site].refused += 1
        self._tell(exchange, refused)  # before the answer: whoever has it finds it on record
        await exchange.refuse(refused)

    def _tell(self, exchange: Exchange, refused: Refused) -> None:
        told = self._told[exchange.site]
        told.since += 1
        if time.monotonic() - told.at < LOG_SECONDS:
            return
        count, told.since, told.at = told.since, 0, time.monotonic()
        stranger = exchange.site == UNKNOWN and exchange.scope["client"]
        reason = f"{refused.sentence} (from {stranger[0]})" if stranger else refused.sentence
        self._on_event("front-refused", site=exchange.site, status=refused.status, reason=reason, refused=count)


def _check(answer: httpx.Response) -> None:
    if answer.status_code >= 500:
        raise Refused(503, f"the SuperLink failed with {answer.status_code}; its log says why")


class _Connection(H11Protocol):
    """A connection that is closed when it takes too long to say what it wants.

    h11 rather than httptools: it limits headers, is strict, and leaves a target as it was sent.
    """

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_request()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._expect_request()
        else:
            self._forget_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_deadline()
        super().connection_lost(exc)

    def _expect_request(self) -> None:
        if self._deadline is None:  # bytes that trickle in do not move it
            self._deadline = self.loop.call_later(REQUEST_SECONDS, self.transport.abort)

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def _server_context(certificate: Path, key: Path, passphrase: bytes | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")  # of TLS 1.2; 1.3 has only good ones
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    try:
        # Without a passphrase OpenSSL would ask for one at the terminal; an empty one is simply wrong.
        context.load_cert_chain(certificate, key, password=passphrase or b"")
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{certificate} and {key} do not serve as a certificate with its key ({_reason(error)}); "
            "check the files and the passphrase"
        ) from None
    return context


def _client_context(authority: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(authority))
    except OSError as error:
        raise BadInput(f"{authority} is not the certificate of an authority ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", None) or getattr(error, "strerror", None) or error)

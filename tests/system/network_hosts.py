"""Four hosts in one machine: a network namespace each, veth pairs between them and a cable, and what the cable saw."""

from __future__ import annotations

import array
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

CABLE = Path(__file__).with_name("cable.py")
NETWORK = "10.77.0"
COORDINATOR_ADDRESS = f"{NETWORK}.1"
# Checksums and the cutting of segments are the sender's work here, and not left to hardware that is not there.
OFFLOADS = (0x17, 0x1F, 0x24)  # ETHTOOL_STXCSUM, ETHTOOL_STSO, ETHTOOL_SGSO
SIOCETHTOOL = 0x8946
HANDSHAKE, TLS_TYPES, LARGEST_RECORD = 22, (20, 21, 22, 23), 2**14 + 256


class Hosts:
    """A coordinator's and some hospitals' namespaces, each with one interface; use it as a context manager."""

    def __init__(self, hospitals: list[str], capture: Path) -> None:
        """Nothing is made yet.

        Args:
            capture: where everything that passes the cable is written to, as pcap.
        """
        self.names = ["coordinator", *hospitals]
        self.capture = capture
        self._cable: subprocess.Popen[str] | None = None

    def address(self, name: str) -> str:
        """The address of a host."""
        return f"{NETWORK}.{self.names.index(name) + 1}"

    def namespace(self, name: str) -> str:
        """The namespace of a host, or of the `cable`."""
        return f"consilium-{os.getpid()}-{name}"

    def inside(self, name: str) -> list[str]:
        """What a command in a host's namespace begins with."""
        return ["ip", "netns", "exec", self.namespace(name)]

    def python(self, name: str, code: str) -> str:
        """What some Python prints that is run in a host's namespace."""
        done = subprocess.run([*self.inside(name), sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def unplug(self) -> dict[str, int]:
        """Takes the cable away, which makes the capture whole; returns the counts of frames."""
        assert self._cable is not None and self._cable.stdout is not None
        self._cable.send_signal(signal.SIGTERM)
        counts: dict[str, int] = json.loads(self._cable.stdout.read())
        self._cable.wait()
        self._cable = None
        return counts

    def __enter__(self) -> Hosts:
        try:
            for name in ("cable", *self.names):
                _ip("netns", "add", self.namespace(name))
                # Only IPv4, so that whatever passes the cable is ours.
                self.python(name, "open('/proc/sys/net/ipv6/conf/all/disable_ipv6', 'w').write('1')")
            for number, name in enumerate(self.names):
                self._join(name, f"cs{os.getpid() % 10**6}-{number}", f"cable{number}")
            interfaces = [f"cable{number}" for number in range(len(self.names))]
            self._cable = subprocess.Popen(
                [*self.inside("cable"), sys.executable, CABLE, self.capture, *interfaces],
                stdout=subprocess.PIPE,
                text=True,
            )
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._cable is not None:
            self._cable.kill()
            self._cable.wait()
        self._remove()

    def _join(self, name: str, own: str, other: str) -> None:
        """A veth pair from a host to the cable."""
        _ip("link", "add", own, "type", "veth", "peer", "name", other, "netns", self.namespace("cable"))
        _without_offloads(own)
        _ip("link", "set", own, "netns", self.namespace(name))
        _ip("-n", self.namespace("cable"), "link", "set", other, "up")
        for command in (["addr", "add", f"{self.address(name)}/24", "dev", own], ["link", "set", own, "up"]):
            _ip("-n", self.namespace(name), *command)
        _ip("-n", self.namespace(name), "link", "set", "lo", "up")

    def _remove(self) -> None:
        for name in ("cable", *self.names):
            subprocess.run(["ip", "netns", "del", self.namespace(name)], capture_output=True)


def refusal() -> str | None:
    """Why this machine lets nobody make a namespace; None when it does."""
    name = f"consilium-{os.getpid()}-probe"
    try:
        _ip("netns", "add", name)
        _ip("-n", name, "link", "add", "probe", "type", "veth")
    except (OSError, subprocess.CalledProcessError) as error:
        return str(getattr(error, "stderr", None) or error).strip()
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return None


def listening(pid: int) -> set[tuple[str, int]]:
    """Address and port of everything that listens, on TCP or UDP, in the network namespace of a process."""
    found = set()
    for protocol, state in (("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")):
        path = Path(f"/proc/{pid}/net/{protocol}")
        for line in path.read_text().splitlines()[1:] if path.exists() else []:
            local, _, found_state = line.split()[1:4]
            address, port = local.split(":")
            if found_state == state:
                found.add((socket.inet_ntoa(bytes.fromhex(address)[::-1]) if len(address) == 8 else address, port))
    return {(address, int(port, 16)) for address, port in found}


class Conversation:
    """The bytes of one direction of one TCP connection."""

    def __init__(self, ends: tuple[str, int, str, int]) -> None:
        self.source, self.source_port, self.target, self.target_port = ends
        self._pieces: dict[int, bytes] = {}

    def put(self, offset: int, payload: bytes) -> None:
        """Takes a segment; one that is sent again is the same again."""
        if len(payload) > len(self._pieces.get(offset, b"")):
            self._pieces[offset] = payload

    @property
    def content(self) -> bytes:
        """What was sent, in order; nothing of it may be missing."""
        content = bytearray()
        for offset, payload in sorted(self._pieces.items()):
            assert offset <= len(content), "the capture has a gap"
            content[offset : offset + len(payload)] = payload
        return bytes(content)


def conversations(capture: Path) -> list[Conversation]:
    """Everything in a capture, which may hold ARP and TCP over IPv4 and no more."""
    found: dict[Any, Conversation] = {}
    first: dict[Any, int] = {}
    for frame in _frames(capture):
        if frame[12:14] == b"\x08\x06":
            continue
        assert frame[12:14] == b"\x08\x00" and frame[23] == 6, f"neither ARP nor TCP: {frame[:34].hex()}"
        packet = frame[14 : 14 + struct.unpack(">H", frame[16:18])[0]]  # without the padding of Ethernet
        segment = packet[4 * (packet[0] & 15) :]
        source_port, target_port, number = struct.unpack(">HHI", segment[:8])
        ends = (socket.inet_ntoa(packet[12:16]), source_port, socket.inet_ntoa(packet[16:20]), target_port)
        if segment[13] & 2:  # SYN
            first[ends] = (number + 1) % 2**32
        payload = segment[4 * (segment[12] >> 4) :]
        if payload:
            key = (ends, first[ends])
            found.setdefault(key, Conversation(ends)).put((number - first[ends]) % 2**32, payload)
    return list(found.values())


def not_tls(content: bytes) -> list[str]:
    """What is no TLS in one direction of a connection: it begins with a handshake, and all of it is records."""
    if content[:1] != bytes([HANDSHAKE]):
        return [f"it begins with {content[:8]!r}, which is no TLS handshake"]
    at, faults = 0, []
    while at < len(content):
        kind, major, _, length = struct.unpack(">BBBH", content[at : at + 5].ljust(5, b"\0"))
        if kind not in TLS_TYPES or major != 3 or not 0 < length <= LARGEST_RECORD:
            return [f"at byte {at} there is no TLS record but {content[at : at + 8]!r}"]
        at += 5 + length
    if at > len(content):
        faults.append(f"its last record lacks {at - len(content)} bytes")
    return faults


def plain_words(content: bytes, words: list[bytes]) -> list[bytes]:
    """Those of some words that can be read in the bytes, in capitals or not."""
    low = content.lower()
    return [word for word in words if word.lower() in low]


def _frames(capture: Path) -> Iterator[bytes]:
    content = capture.read_bytes()
    at = 24
    while at < len(content):
        (length,) = struct.unpack("<I", content[at + 8 : at + 12])
        yield content[at + 16 : at + 16 + length]
        at += 16 + length


def _without_offloads(interface: str) -> None:
    with socket.socket() as any_socket:
        for command in OFFLOADS:
            value = array.array("B", struct.pack("II", command, 0))
            request = struct.pack("16sP16x", interface.encode(), value.buffer_info()[0])
            fcntl.ioctl(any_socket, SIOCETHTOOL, request)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)

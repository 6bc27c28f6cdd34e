"""A long, narrow, lossy cable: hands Ethernet frames from one interface to another, late, and not all of them.

    python cable.py CAPTURE COORDINATOR HOSPITAL...

The interfaces are in the network namespace of this process. It is what `tc netem` would be, in user space, because not
every kernel has netem. Whatever a sender hands over is written to the file CAPTURE (pcap) before any of it is lost. It
is the hospitals' firewall too: nobody opens a connection to a hospital. At SIGTERM it prints what became of the frames.
"""

from __future__ import annotations

import heapq
import json
import random
import select
import signal
import socket
import struct
import sys
import time
from typing import BinaryIO

BITS_PER_SECOND, DELAY_SECONDS, LOSS = 20e6, 0.050, 0.01  # of each direction of each hospital's line
QUEUE_SECONDS = 0.5  # what would have to wait longer is dropped, as by any router
ETH_P_ALL, PACKET_OUTGOING = 3, 4
ARP, IPV4, TCP = b"\x08\x06", b"\x08\x00", 6
SYN, ACK = 0x02, 0x10
PCAP_HEADER = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)


class Line:
    """One direction of one hospital's line."""

    def __init__(self, seed: str) -> None:
        self._busy_until, self._random = 0.0, random.Random(seed)

    def arrival(self, size: int, now: float) -> float | None:
        """When a frame of so many bytes comes out at the other end; None when it does not."""
        start = max(now, self._busy_until)
        if start - now > QUEUE_SECONDS:
            return None
        self._busy_until = start + size * 8 / BITS_PER_SECOND
        return None if self._random.random() < LOSS else self._busy_until + DELAY_SECONDS


def may_enter(frame: bytes) -> bool:
    """Whether the firewall lets a frame into a hospital: ARP, and TCP that the hospital began."""
    if frame[12:14] == ARP:
        return True
    if frame[12:14] != IPV4 or frame[23] != TCP:
        return False
    flags = frame[14 + 4 * (frame[14] & 15) + 13]
    return bool(flags & ACK) or not flags & SYN


def carry(capture: BinaryIO, coordinator: socket.socket, hospitals: list[socket.socket], count: dict[str, int]) -> None:
    """Carries frames until SIGTERM."""
    lines = {(one, up): Line(f"{number} {up}") for number, one in enumerate(hospitals) for up in (True, False)}
    behind: dict[bytes, socket.socket] = {}  # MAC -> hospital
    on_the_way: list[tuple[float, int, socket.socket, bytes]] = []
    while True:
        pause = max(0.0, on_the_way[0][0] - time.monotonic()) if on_the_way else None
        for ready in select.select([coordinator, *hospitals], [], [], pause)[0]:
            frame, (_, _, kind, *_) = ready.recvfrom(65535)
            if kind == PACKET_OUTGOING:
                continue
            count["frames"] += 1
            stamp = time.time()
            capture.write(struct.pack("<IIII", int(stamp), int(stamp % 1 * 1e6), len(frame), len(frame)) + frame)
            up = ready is not coordinator
            if up:
                behind[frame[6:12]] = ready
                targets = [ready]
            else:
                # A broadcast goes to all; what is for nobody here goes nowhere.
                targets = hospitals if frame[0] & 1 else [behind[frame[:6]]] if frame[:6] in behind else []
                if not may_enter(frame):
                    count["refused"] += 1
                    continue
            for hospital in targets:
                at = lines[hospital, up].arrival(len(frame), time.monotonic())
                if at is None:
                    count["lost"] += 1
                else:
                    heapq.heappush(on_the_way, (at, count["frames"], coordinator if up else hospital, frame))
        while on_the_way and on_the_way[0][0] <= time.monotonic():
            _, _, target, frame = heapq.heappop(on_the_way)
            target.send(frame)


def interface(name: str) -> socket.socket:
    """A socket that sees and sends whole frames."""
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    raw.bind((name, 0))
    return raw


def main() -> None:
    """Carries frames until SIGTERM, then prints the counts."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    count = {"frames": 0, "lost": 0, "refused": 0}
    with open(sys.argv[1], "wb") as capture:
        capture.write(PCAP_HEADER)
        try:
            carry(capture, interface(sys.argv[2]), [interface(name) for name in sys.argv[3:]], count)
        finally:
            print(json.dumps(count), flush=True)


if __name__ == "__main__":
    main()

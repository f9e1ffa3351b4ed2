"""Messages between the server and its engine: a length of four bytes, then JSON."""

import asyncio
import socket
from typing import Any

import orjson

HEAD = 4


def pack(message: Any) -> bytes:
    body = orjson.dumps(message)
    return len(body).to_bytes(HEAD) + body


async def read(reader: asyncio.StreamReader) -> Any:
    """The next message. Raises asyncio.IncompleteReadError or OSError where the other side is gone."""
    return orjson.loads(await reader.readexactly(int.from_bytes(await reader.readexactly(HEAD))))


def receive(channel: socket.socket) -> Any:
    """The next message, waited for; None where the other side is gone."""
    head = _exactly(channel, HEAD)
    body = head and _exactly(channel, int.from_bytes(head))
    return orjson.loads(body) if body else None


def _exactly(channel: socket.socket, size: int) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        try:
            part = channel.recv(size - len(data))
        except OSError:
            return None
        if not part:
            return None
        data += part
    return bytes(data)

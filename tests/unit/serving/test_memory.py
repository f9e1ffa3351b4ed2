"""What a request takes it gives back."""

import asyncio
from pathlib import Path

import httpx
import pytest

from tests.unit.serving.toys import QUESTION, Server


def resident(process: int) -> float:
    """MiB of memory."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


async def ask(server: Server, requests: int, clients: int = 8) -> None:
    """Streamed and whole ones, refused ones, and some whose client goes."""
    numbers = iter(range(requests))
    limits = httpx.Limits(max_connections=clients)

    async def client(http: httpx.AsyncClient) -> None:
        for number in numbers:
            body = {"model": server.name, "messages": QUESTION, "max_tokens": 4, "stream": number % 2 == 0}
            if number % 10 == 7:
                body["messages"] = [{"role": "user", "content": f"<think>{number}"}]
            async with http.stream("POST", f"{server.address}/v1/chat/completions", json=body) as response:
                assert response.status_code == (400 if number % 10 == 7 else 200)
                if number % 10 != 4:
                    await response.aread()

    async with httpx.AsyncClient(limits=limits, timeout=60) as http:
        await asyncio.gather(*(client(http) for _ in range(clients)))


def growth(server: Server, requests: int) -> dict[str, float]:
    """MiB that server and engine have grown by, after as many requests to warm up as a fifth of these."""
    asyncio.run(ask(server, requests // 5))
    processes = {"server": server.process.pid, "engine": server.engine()}
    before = {name: resident(process) for name, process in processes.items()}
    asyncio.run(ask(server, requests))
    return {name: resident(process) - before[name] for name, process in processes.items()}


@pytest.mark.slow
def test_memory_stays_flat(server: Server) -> None:
    assert all(grown < 4 for grown in growth(server, 1_000).values())

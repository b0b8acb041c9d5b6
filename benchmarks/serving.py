"""Latency of `zephyr-jax serve` under load: many clients at once, some of whom leave, prompts and answers of mixed lengths.

    uv run python -m benchmarks.serving [--python PYTHON] [--clients 200 600] [--waiting 256] [--messages 2001]

PYTHON is the interpreter of the version to measure (default: this one). The model is the demo's base. A fifth of the clients hang
up within half a second, half of them stream. While they run, a probe asks /health every 20 ms. At the end one client sends a
conversation of `--messages` short messages, and the probe shows how long it keeps the others from an answer.
"""

import argparse
import asyncio
import random
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from statistics import quantiles
from typing import Any

import aiohttp

BASE = Path(__file__).parents[1] / "zephyr_jax" / "demo" / "assets" / "base"
LEAVES = 0.2
WORDS = (5, 40, 150)
ANSWERS = (8, 32, 96)


async def one(session: aiohttp.ClientSession, url: str, number: int) -> tuple[str, float, float]:
    """What became of a client's request, and its seconds to the first byte of the answer and to its end."""
    draw = random.Random(number)
    content = f"Write story {number}: {'word ' * draw.choice(WORDS)}"
    body = {
        "model": "base", "messages": [{"role": "user", "content": content}], "max_tokens": draw.choice(ANSWERS),
        "temperature": 1, "seed": number, "stream": draw.random() < 0.5,
    }  # fmt: skip
    leaves = draw.uniform(0.05, 0.5) if draw.random() < LEAVES else None
    begun = time.perf_counter()
    try:
        async with asyncio.timeout(leaves), session.post(f"{url}/chat/completions", json=body) as answer:
            await answer.content.readany()
            first = time.perf_counter() - begun
            await answer.read()
            return str(answer.status), first, time.perf_counter() - begun
    except TimeoutError:
        return "left", 0.0, 0.0
    except aiohttp.ClientError as error:
        return type(error).__name__, 0.0, 0.0


async def health(session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    async with session.get(url.replace("/v1", "/health")) as answer:
        return await answer.json()


async def probe(session: aiohttp.ClientSession, url: str, seconds: list[float]) -> None:
    """Times of /health, until canceled."""
    while True:
        begun = time.perf_counter()
        await health(session, url)
        seconds.append(time.perf_counter() - begun)
        await asyncio.sleep(0.02)


def percentiles(seconds: list[float]) -> str:
    """50, 95 and 99 %, and the largest, in seconds."""
    if len(seconds) < 2:
        return "-"
    at = quantiles(seconds, n=100, method="inclusive")
    return " / ".join(f"{value:.2f}" for value in (at[49], at[94], at[98], max(seconds)))


async def load(url: str, clients: int) -> str:
    """A line of the table."""
    unlimited = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=unlimited, timeout=aiohttp.ClientTimeout(total=600)) as session:
        waits: list[float] = []
        watching = asyncio.create_task(probe(session, url, waits))
        results = await asyncio.gather(*(one(session, url, number) for number in range(clients)))
        watching.cancel()
        for _ in range(600):
            left = (await health(session, url))["open_requests"]
            if not left:
                break
            await asyncio.sleep(0.05)
    done = [row for row in results if row[0] == "200"]
    counts = ", ".join(f"{count} {name}" for name, count in sorted(Counter(row[0] for row in results).items()))
    first, end = ([row[index] for row in done] for index in (1, 2))
    return f"| {clients} | {counts} | {percentiles(first)} | {percentiles(end)} | {percentiles(waits)} | {left} |"


async def long_conversation(url: str, messages: int) -> str:
    """How long one client's many messages keep others from an answer of /health."""
    roles = ("user", "assistant")
    body = {
        "model": "base", "max_tokens": 4,
        "messages": [{"role": roles[index % 2], "content": "ab"[index % 2]} for index in range(messages)],
    }  # fmt: skip
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=600)) as session:
        waits: list[float] = []
        watching = asyncio.create_task(probe(session, url, waits))
        await asyncio.sleep(0.2)
        begun = time.perf_counter()
        async with session.post(f"{url}/chat/completions", json=body) as answer:
            await answer.read()
        seconds = time.perf_counter() - begun
        await asyncio.sleep(0.2)
        watching.cancel()
    return f"{messages:,} messages: {answer.status} after {seconds:.2f} s; /health waited up to {max(waits):.2f} s"


def main() -> None:
    """Start a server, print the table, stop it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--clients", type=int, nargs="+", default=[200, 600])
    parser.add_argument("--waiting", type=int, default=256)
    parser.add_argument("--messages", type=int, default=2001)
    parser.add_argument("--template", default="tokenizer")
    options = parser.parse_args()
    command = [options.python, "-m", "zephyr_jax", "serve", "--model", str(BASE), "--name", "base", "--port", "0"]
    command += ["--max_open_requests", str(options.waiting), "--chat_template", options.template]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        url = next(match[1] for line in server.stderr if (match := re.search(r"serving `base` at (\S+)", line)))
        asyncio.run(load(url, 8))  # compiles
        print("| clients | results | first byte s, 50/95/99 %/max | whole answer s | /health s | open at the end |")
        print("|---|---|---|---|---|---|")
        for clients in options.clients:
            print(asyncio.run(load(url, clients)), flush=True)
        print(asyncio.run(long_conversation(url, options.messages)), flush=True)
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()

"""The store behind a network that fails: what is done is right, what is not done says so."""

import hashlib
import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import boto3
import pytest
from botocore.retries.standard import ExponentialBackoff
from moto.server import ThreadedMotoServer

from pipeline.store import Archive, Limits, Store, open_store
from tests.faults.proxy import Fault, FaultyProxy

pytestmark = pytest.mark.slow

BUCKET = "bucket"
SERVER_VARIABLE = "R1FLOW_TEST_S3"
"""host:port of an S3 server to run these tests against instead of moto, with credentials as boto3 finds them."""
LIMITS = Limits(connect_seconds=2.0, read_seconds=0.6, attempts=6)
ALL: dict[Fault, float] = dict.fromkeys(("busy", "reset", "truncated", "slow", "lost"), 0.1)
OPERATIONS, ROUNDS, THREADS = 500, 200, 8


@pytest.fixture(scope="module")
def upstream() -> Iterator[tuple[str, int]]:
    """An S3 server's address."""
    if named := os.environ.get(SERVER_VARIABLE):
        host, _, port = named.partition(":")
        yield host, int(port)
        return
    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    yield moto.get_host_and_port()
    moto.stop()


@pytest.fixture
def connect(
    upstream: tuple[str, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[[dict[Fault, float]], Store]]:
    """A store behind a proxy with the given faults; a bucket is there."""
    if SERVER_VARIABLE not in os.environ:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    waits = ExponentialBackoff.delay_amount
    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda self, context: waits(self, context) / 50)
    client = boto3.client("s3", endpoint_url=f"http://{upstream[0]}:{upstream[1]}")
    if BUCKET not in {one["Name"] for one in client.list_buckets()["Buckets"]}:
        client.create_bucket(Bucket=BUCKET)
    open_proxies: list[FaultyProxy] = []

    def connected(shares: dict[Fault, float]) -> Store:
        proxy = FaultyProxy(*upstream, shares, slow_seconds=2 * LIMITS.read_seconds, seed=7).__enter__()
        open_proxies.append(proxy)
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        store = open_store(f"s3://{BUCKET}/{tmp_path.name}", LIMITS)
        store.stat("key")  # the client is made now, for this proxy
        return store

    yield connected
    for proxy in open_proxies:
        proxy.__exit__()


@dataclass
class Customer:
    """Uses the store under a prefix of its own, and knows what may be there: what was written, or failed half-way."""

    store: Store
    name: str
    folder: Path
    random: random.Random
    failed: int = 0
    expected: dict[str, set[bytes | None]] = field(default_factory=dict)  # key → what may lie there

    def work(self, operations: int) -> None:
        self.folder.mkdir()
        for number in range(operations):
            operation = self.random.choice((self.write, self.move, self.look, self.look))
            try:
                operation(number)
            except ConnectionError:
                self.failed += 1

    def write(self, number: int) -> None:
        data = self.random.randbytes(self.random.choice((10, 3_000, 200_000)))
        key = f"{self.name}/objects/{hashlib.sha256(data).hexdigest()}"
        (self.folder / "source").write_bytes(data)
        self.expected[key] = {None, data}
        self.store.upload(self.folder / "source", key)
        self.expected[key] = {data}

    def move(self, number: int) -> None:
        key = f"{self.name}/pointer"
        known = self.expected.setdefault(key, {None})
        found = self.store.read(key)
        assert (found.data if found else None) in known
        known |= {data := f"{self.name} {number}".encode()}
        if found is None:
            assert self.store.create(key, data)
        else:
            assert self.store.replace(key, data, found.version), "nobody else writes here"
        self.expected[key] = {data}

    def look(self, number: int) -> None:
        if not self.expected:
            return
        key = self.random.choice(sorted(self.expected))
        known = self.expected[key]
        if None in known or self.random.random() < 0.3:
            listed = set(self.store.list(f"{self.name}/"))
            assert listed <= self.expected.keys()
            assert {one for one, data in self.expected.items() if None not in data} <= listed
            return
        self.store.download(key, self.folder / "copy")
        assert (self.folder / "copy").read_bytes() in known


def test_what_is_done_is_right_and_what_is_not_says_so(
    connect: Callable[[dict[Fault, float]], Store], tmp_path: Path
) -> None:
    customers = [
        Customer(connect(ALL), f"customer-{number}", tmp_path / str(number), random.Random(number))
        for number in range(THREADS)
    ]
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda customer: customer.work(-(-OPERATIONS // THREADS)), customers))
    failed = sum(customer.failed for customer in customers)
    print(f"{failed} of {OPERATIONS} operations failed, each with a ConnectionError")
    assert failed < OPERATIONS / 4
    calm = connect({})
    for customer in customers:
        for key, known in customer.expected.items():
            found = calm.read(key)
            assert (found.data if found else None) in known


def test_no_pointer_leads_to_something_missing(connect: Callable[[dict[Fault, float]], Store], tmp_path: Path) -> None:
    archive, calm = Archive(connect(ALL)), Archive(connect({}))
    (tmp_path / "files").mkdir()
    done = 0
    for number in range(12):
        files = {name: tmp_path / "files" / name for name in ("weights", "progress", "the same")}
        for name, path in files.items():
            path.write_text(name if name == "the same" else f"{name} {number}" * 500)
        try:
            manifest = archive.put(files)
            done += archive.move("newest", manifest, over=archive.pointer("newest"))
        except ConnectionError:
            pass
        if (pointer := calm.pointer("newest")) is not None:
            calm.fetch(pointer.manifest, tmp_path / "copy")
            shutil.rmtree(tmp_path / "copy")
    assert done >= 4


def test_of_two_writers_one_wins(connect: Callable[[dict[Fault, float]], Store]) -> None:
    race(connect({}), ROUNDS)


def test_of_two_writers_whose_answers_are_lost_one_wins(connect: Callable[[dict[Fault, float]], Store]) -> None:
    race(connect({"lost": 0.1, "truncated": 0.1}), ROUNDS // 4)


def test_of_two_writers_to_a_folder_one_wins(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    race(open_store(str(tmp_path / "store")), ROUNDS)


def race(store: Store, rounds: int) -> None:
    """Each round two writers read the pointer and then move it at once."""
    archive, start = Archive(store), threading.Barrier(2)

    def moved(manifest: str) -> bool | None:
        """None: it is not known."""
        try:
            over = archive.pointer("contested")
        except ConnectionError:
            over = None
            start.abort()
        try:
            start.wait(60)
        except threading.BrokenBarrierError:
            return None
        try:
            return archive.move("contested", manifest, over=over)
        except ConnectionError:
            return None

    decided = 0
    with ThreadPoolExecutor(2) as pool:
        for number in range(rounds):
            start.reset()
            names = [hashlib.sha256(f"{number} {writer}".encode()).hexdigest() for writer in "ab"]
            won = list(pool.map(moved, names))
            now = archive.pointer("contested")
            if None in won:
                continue
            assert won.count(True) == 1, f"round {number}: {won}"
            assert now is not None
            assert now.manifest == names[won.index(True)]
            decided += 1
    assert decided > 0.9 * rounds

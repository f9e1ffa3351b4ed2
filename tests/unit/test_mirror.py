"""Checkpoints go to the store and come back from it."""

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import mirror as module
from pipeline.errors import InputError
from pipeline.mirror import Mirror, is_ahead, mirrored, progress, watch, work_mirror
from pipeline.store import Archive, open_store


class Work:
    """The folder of a piece of work on one machine, with the one store that all have."""

    def __init__(self, tmp_path: Path, machine: str) -> None:
        self.folder = tmp_path / machine
        self.folder.mkdir()
        self.store = tmp_path / "store"
        self.store.mkdir(exist_ok=True)
        self.mirror = Mirror(Archive(open_store(str(self.store)), "checkpoints/base/key/"), self.folder)

    def save(self, step: int, part: str = "") -> None:
        """As training does: the folder appears by a rename, the account follows, the oldest but one goes."""
        temporary = self.folder / part / f".step-{step}.tmp"
        temporary.mkdir(parents=True)
        (temporary / "weights").write_text(f"weights {part} {step}")
        (temporary / "random").write_text("the same all the time")
        if part:
            (temporary / "ranks").mkdir()
            (temporary / "ranks" / "0").write_text(f"rank 0 {step}")
        temporary.rename(self.folder / part / f"step-{step}")
        (self.folder / "curves.jsonl").open("a").write(f"{step}\n")
        (self.folder / "cost.json").write_text(json.dumps({"kept": step}))
        for old in sorted((self.folder / part).glob("step-*"), key=lambda path: int(path.name[5:]))[:-2]:
            for path in [*old.iterdir(), old]:
                path.rmdir() if path.is_dir() else path.unlink()

    def content(self) -> dict[str, str]:
        paths = (path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.read_text() for path in paths}


@pytest.fixture
def here(tmp_path: Path) -> Work:
    return Work(tmp_path, "here")


@pytest.fixture
def there(tmp_path: Path) -> Work:
    return Work(tmp_path, "there")


def test_says_how_far_files_have_come() -> None:
    names = ["step-9/a", "step-10/a", "train/step-3/a", "candidates-0.parquet", "candidates-8.parquet", "curves.jsonl"]
    assert progress(names) == {"": 10, "train": 3, "candidates": 2}


def test_ahead_is_further_in_a_part_and_behind_in_none() -> None:
    assert is_ahead({"": 1}, {})
    assert is_ahead({"base": 5, "train": 1}, {"base": 5})
    assert not is_ahead({"base": 5}, {"base": 5})
    assert not is_ahead({"base": 5}, {"base": 4, "train": 1})
    assert not is_ahead({}, {})


def test_another_machine_goes_on_where_this_one_was(here: Work, there: Work) -> None:
    for step in (1, 2, 3):
        here.save(step)
    here.save(1, "train")
    (here.folder / "candidates-00000000.parquet").write_text("judged")
    (here.folder / "downloaded").mkdir()
    (here.folder / "downloaded" / "weights").write_text("can be had again")
    here.mirror.copy()
    assert there.mirror.restore() == {"": 3, "train": 1, "candidates": 1}
    expected = {name: text for name, text in here.content().items() if not name.startswith("downloaded")}
    assert there.content() == expected
    assert set(expected) >= {"step-2/weights", "step-3/weights", "train/step-1/weights", "curves.jsonl", "cost.json"}
    assert there.mirror.restore() == {}  # nothing more to bring


def test_two_copies_are_kept_and_nothing_else(here: Work) -> None:
    for step in range(1, 8):
        here.save(step)
        here.mirror.copy()
    names = [path for path in here.store.rglob("*") if path.is_file() and path.name != ".lock"]
    kinds = [path.relative_to(here.store / "checkpoints" / "base" / "key").parts[0] for path in names]
    assert (kinds.count("manifests"), kinds.count("pointers")) == (2, 1)
    # Weights of steps 5, 6, 7; what is random; two notes and two accounts.
    assert kinds.count("objects") == 8


def test_a_machine_that_is_ahead_keeps_what_it_has(here: Work, there: Work) -> None:
    here.save(1)
    here.mirror.copy()
    for step in (1, 2):
        there.save(step)
    before = there.content()
    assert there.mirror.restore() == {}
    assert there.content() == before


def test_a_machine_that_is_behind_leaves_the_pointer_alone(here: Work, there: Work, tmp_path: Path) -> None:
    for step in (1, 2):
        here.save(step)
    here.mirror.copy()
    there.save(1)
    there.mirror.copy()
    there.mirror.copy(last=True)
    assert Work(tmp_path, "third").mirror.restore() == {"": 2}
    there.save(2)
    there.save(3)
    there.mirror.copy()
    assert Work(tmp_path, "fourth").mirror.restore() == {"": 3}


def test_an_older_or_broken_checkpoint_here_makes_way(here: Work, there: Work) -> None:
    for step in (1, 2):
        here.save(step)
    here.mirror.copy()
    there.save(1)
    there.save(2)
    (there.folder / "step-2" / "weights").write_text("torn")
    assert there.mirror.restore() == {"": 2}
    assert there.content() == here.content()


def test_a_damaged_copy_gives_way_to_the_one_before(here: Work, there: Work, caplog: pytest.LogCaptureFixture) -> None:
    for step in (1, 2, 3):
        here.save(step)
        here.mirror.copy()
    for path in here.store.rglob("objects/*"):
        if path.read_text() == "weights  3":
            path.write_text("weights  4")
    assert there.mirror.restore() == {"": 2}
    assert "passed over" in caplog.text
    assert "damaged" in caplog.text


@pytest.mark.parametrize("kind", ["manifests", "objects"])
def test_copying_goes_on_after_a_copy_was_damaged(here: Work, there: Work, kind: str) -> None:
    for step in (1, 2):
        here.save(step)
        here.mirror.copy()
    for path in here.store.rglob(f"{kind}/*"):
        path.write_text("damaged")
    for step in (3, 4, 5):
        here.save(step)
        here.mirror.copy()
    assert there.mirror.restore() == {"": 5}


def test_a_kill_between_notes_and_checkpoint_is_mended(
    here: Work, there: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.save(1)
    here.mirror.copy()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_steps", killed)
    with pytest.raises(KeyboardInterrupt):
        there.mirror.restore()
    monkeypatch.undo()
    assert there.mirror.restore() == {"": 1}
    assert there.content() == here.content()


def test_the_account_of_a_checkpoint_is_awaited(here: Work, there: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    here.save(1)
    written = (here.folder / "step-1" / "weights").stat().st_mtime
    os.utime(here.folder / "cost.json", (written - 1, written - 1))
    here.mirror.copy()
    assert there.mirror.restore() == {}
    monkeypatch.setattr(module, "SETTLE_SECONDS", 0.0)  # it does not come
    here.mirror.copy()
    assert there.mirror.restore() == {"": 1}


def test_copies_are_whole_while_checkpoints_come_and_go(here: Work, tmp_path: Path) -> None:
    """Training removes old checkpoints as fast as it can; every copy is one that can be resumed from."""
    stop = threading.Event()

    def trains() -> None:
        for step in range(1, 10_000):
            if stop.is_set():
                return
            here.save(step)

    thread = threading.Thread(target=trains)
    thread.start()
    try:
        for number in range(15):
            here.mirror.copy(last=True)
            other = Work(tmp_path, f"other-{number}")
            reached = other.mirror.restore().get("")
            if reached is None:
                continue
            content = other.content()
            assert content[f"step-{reached}/weights"] == f"weights  {reached}"
            assert content[f"step-{reached}/random"] == "the same all the time"
            assert int(content["curves.jsonl"].split()[-1]) >= reached - 1
    finally:
        stop.set()
        thread.join()
    assert not (here.folder / module.LINKS).exists()


class Broken:
    """A mirror whose store fails as often as it says."""

    def __init__(self, failures: int) -> None:
        self.failures, self.copies = failures, 0

    def copy(self, *, last: bool = False) -> None:
        self.failures -= 1
        if self.failures >= 0:
            raise ConnectionError("away")
        self.copies += 1


def test_an_absent_store_is_told_once_and_again_when_it_is_back(caplog: pytest.LogCaptureFixture) -> None:
    pauses: list[float] = []

    def ended(seconds: float) -> bool:
        pauses.append(seconds)
        return len(pauses) > 5

    broken = Broken(3)
    assert watch(broken, ended, "s3://b") == 0  # type: ignore[arg-type]
    assert pauses == [1.0, 2.0, 4.0, 8.0, 1.0, 1.0]
    assert [record.message for record in caplog.records] == [
        "checkpoints are not copied to s3://b for now: away",
        "checkpoints are copied to s3://b again",
    ]
    assert broken.copies == 3


def test_a_last_copy_that_fails_is_told(caplog: pytest.LogCaptureFixture) -> None:
    assert watch(Broken(9), lambda seconds: True, "s3://b") == module.FAILED  # type: ignore[arg-type]
    assert "the newest checkpoint has no copy in s3://b: away" in caplog.text


def run_in(tmp_path: Path, machine: str, steps: Iterator[int], *, fails: bool = False) -> Work:
    """A stage on a machine, whose project folder is its own and whose store is not."""
    root = tmp_path / machine
    (root / "runs" / "base").mkdir(parents=True)
    store = tmp_path / "store"
    store.mkdir(exist_ok=True)
    work = Work(tmp_path, f"{machine}/runs/base/key")
    with mirrored(str(store), root, "base", "key"):
        for step in steps:
            work.save(step)
        if fails:
            raise SystemExit(143)
    return work


def test_a_stage_that_is_stopped_goes_on_elsewhere(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_in(tmp_path, "here", iter([1, 2, 3]), fails=True)
    there = run_in(tmp_path, "there", iter([]))
    assert set(there.content()) == {
        *(f"step-{step}/{name}" for step in (2, 3) for name in ("weights", "random")), "curves.jsonl", "cost.json"
    }  # fmt: skip
    assert "base: goes on from the checkpoint" in capfd.readouterr().err


def test_a_copy_is_made_while_the_stage_runs(tmp_path: Path) -> None:
    def steps() -> Iterator[int]:
        yield 1
        deadline = time.monotonic() + 30
        while not list((tmp_path / "store").rglob("pointers/newest")):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    run_in(tmp_path, "here", steps())


def test_without_a_store_nothing_is_started(tmp_path: Path) -> None:
    with mirrored(None, tmp_path, "base", "key"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_does_not_answer_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setattr(module, "ENDED_SECONDS", 3.0)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # botocore's between its attempts
    work = Work(tmp_path, "work")
    with mirrored("s3://bucket", tmp_path, "base", "key"):
        work.save(1)
        assert "goes on without a look at the store's checkpoints" in caplog.text
        (tmp_path / "runs" / "base").mkdir(parents=True)
        work.folder.rename(tmp_path / "runs" / "base" / "key")
    assert "copy in s3://bucket" in caplog.text + capfd.readouterr().err


def test_a_store_that_cannot_be_used_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must be there"), mirrored("/not/mounted", tmp_path, "base", "key"):
        pytest.fail("the stage has begun")


def test_the_folder_in_the_store_is_the_work_s_own(tmp_path: Path) -> None:
    mirror = work_mirror("store", tmp_path, "distillation@small", "0123")
    assert str(mirror._archive) == f"{tmp_path / 'store'}/checkpoints/distillation@small/0123/"

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.training.checkpoints import DIGESTS, Checkpoint, Checkpoints


def checkpoint(step: int) -> Checkpoint:
    state = {"weights": {"a": torch.full((3,), float(step))}, "optimiser": {"a:exp_avg": torch.arange(step)}}
    return Checkpoint(step, {"loss": 0.1 * step}, state)


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


TEARS: dict[str, Callable[[Path], object]] = {
    "marker missing": lambda folder: (folder / "digests.json").unlink(),
    "marker cut": lambda folder: (folder / "digests.json").write_text('{"weights.safe'),
    "marker empty": lambda folder: (folder / "digests.json").write_text(""),
    "file missing": lambda folder: (folder / "optimiser.safetensors").unlink(),
    "file cut": lambda folder: (folder / "weights.safetensors").write_bytes(b"\0" * 9),
    "bit flipped": lambda folder: flip_last_byte(folder / "weights.safetensors"),
    "progress changed": lambda folder: (folder / "progress.json").write_text("{}"),
}


def test_notes_of_the_steps_before_are_flushed_with_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[Path] = []
    monkeypatch.setattr("pipeline.training.checkpoints.flush", flushed.append)
    (tmp_path / "curves.jsonl").write_text("[1, {}]\n")
    for folder in (tmp_path, tmp_path / "base"):  # as a part of a work
        Checkpoints(folder).save(checkpoint(1))
    assert flushed == [tmp_path / "curves.jsonl"] * 2


def test_newest_comes_back_as_saved(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path)
    for step in (9, 10):  # by number, not by name
        checkpoints.save(checkpoint(step))
    newest = checkpoints.newest()
    assert newest is not None
    assert (newest.step, newest.progress) == (10, {"loss": 1.0})
    assert torch.equal(newest.state["weights"]["a"], torch.full((3,), 10.0))
    assert torch.equal(newest.state["optimiser"]["a:exp_avg"], torch.arange(10))


def test_nothing_saved_is_no_checkpoint(tmp_path: Path):
    assert Checkpoints(tmp_path / "not there").newest() is None


def test_two_are_kept_and_nothing_that_a_killed_writer_left(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path)
    (tmp_path / ".step-7.tmp-123").mkdir()
    for step in range(8, 13):
        checkpoints.save(checkpoint(step))
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["step-11", "step-12"]


@pytest.mark.parametrize("tear", TEARS.values(), ids=TEARS.keys())
def test_a_broken_checkpoint_is_passed_over_with_a_warning(
    tear: Callable[[Path], object], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(checkpoint(1))
    checkpoints.save(checkpoint(2))
    tear(tmp_path / "step-2")
    newest = checkpoints.newest()
    assert newest is not None
    assert newest.step == 1
    assert "step-2 is broken" in caplog.text


def test_broken_checkpoints_of_later_steps_make_room(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(checkpoint(8))
    checkpoints.save(checkpoint(9))
    for step in (8, 9):
        (tmp_path / f"step-{step}" / DIGESTS).write_text("{")
    assert checkpoints.newest() is None
    checkpoints.save(checkpoint(1))
    newest = checkpoints.newest()
    assert newest is not None
    assert newest.step == 1
    assert [folder.name for folder in tmp_path.iterdir()] == ["step-1"]


def test_a_kill_while_writing_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(checkpoint(1))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.training.checkpoints.digest", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(checkpoint(2))
    monkeypatch.undo()
    newest = checkpoints.newest()
    assert newest is not None
    assert newest.step == 1


def test_a_checkpoint_takes_the_place_of_a_broken_one_of_the_same_step(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(checkpoint(1))
    TEARS["file cut"](tmp_path / "step-1")
    checkpoints.save(checkpoint(1))
    assert checkpoints.newest() is not None

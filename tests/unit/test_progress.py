"""In a log file progress is a line now and then, with the rate of this attempt and the time left."""

import pytest

from pipeline import progress
from pipeline.progress import Progress


def test_a_log_file_gets_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with Progress("base", total=100, unit="steps", done=40) as bar:
        for _ in range(20):
            clock[0] += 1.0
            bar.advance(2, "loss 1.5")
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["base: 70/100 · 2.0 steps/s loss 1.5 · 15 s left"]

"""A stage's curves: the same bytes, whether or not the run was killed on its way."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.curves import NOTES, Curves


def _figures(step: int) -> dict[str, float]:
    return {"loss": 1 / (step + 1), "tokens": step, **({"kl": 0.1 * step} if step % 2 else {})}


def _undisturbed(folder: Path, steps: int) -> bytes:
    curves = Curves(folder)
    for step in range(steps):
        curves.note({**_figures(step), "update_s": 0.5, "tokens_per_s": 3.0}, step)
    curves.write(folder / "curves.csv")
    return (folder / "curves.csv").read_bytes()


def test_a_row_for_each_step_and_no_times(tmp_path: Path) -> None:
    text = _undisturbed(tmp_path, 3).decode()
    assert text == "step,kl,loss,tokens\n0,nan,1.0,0\n1,0.1,0.5,1\n2,nan,0.3333333333333333,2\n"


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 60)), max_size=4))
def test_kills_leave_no_trace(tmp_path_factory: pytest.TempPathFactory, kills: list[tuple[int, int]]) -> None:
    """Each kill: so many steps after the newest checkpoint (every third step), so many bytes of a line written."""
    folder = tmp_path_factory.mktemp("killed")
    done = 0
    for steps, torn in kills:
        curves = Curves(folder)
        for step in range(done, min(10, done + steps)):
            curves.note({**_figures(step), "update_s": float(torn)}, step)
            done = step + 1
        with (folder / NOTES).open("a") as file:
            file.write('[5, {"loss": 0.16666666666666666, "tokens": 5, "kl": 0.5, "x": 1}]'[:torn])
        done -= done % 3
    curves = Curves(folder)
    for step in range(done, 10):
        curves.note(_figures(step), step)
    curves.write(folder / "curves.csv")
    assert (folder / "curves.csv").read_bytes() == _undisturbed(tmp_path_factory.mktemp("undisturbed"), 10)


def test_figures_of_one_step_may_come_in_parts(tmp_path: Path) -> None:
    curves = Curves(tmp_path)
    curves.note({"loss": 1.0}, 0)
    curves.note({"agreement": 0.5}, 0)
    curves.write(tmp_path / "curves.csv")
    assert (tmp_path / "curves.csv").read_text() == "step,agreement,loss\n0,0.5,1.0\n"


def test_without_figures_it_is_a_header(tmp_path: Path) -> None:
    Curves(tmp_path / "new").write(tmp_path / "curves.csv")
    assert (tmp_path / "curves.csv").read_text() == "step\n"

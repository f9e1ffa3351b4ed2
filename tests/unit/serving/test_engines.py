"""One model takes over from another without a failed request; one that cannot be loaded changes nothing."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError
from pipeline.files import write_json
from pipeline.model.stored import USE
from pipeline.params import Serving
from pipeline.serving.engines import Answering, Ask, EngineLostError
from tests.unit.serving.toys import write_model

ASK = Ask([1, 2, 3], 2, {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 60}, "", None, False, False, None, [])

SLOTS = Serving(slots=4)
LARGE = {"hidden_size": 128, "moe_intermediate_size": 128, "n_routed_experts": 96}  # 19 MB of experts


def own_memory(process: int) -> int:
    """Bytes that are no file's and nobody else's."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


async def answer(answering: Answering) -> tuple[str, str]:
    """Whose, and what."""
    engine = answering.current
    assert engine is not None
    assert engine.facts is not None
    call = engine.submit([ASK])
    text = ""
    async for parts in call.parts():
        text += "".join(part.answer for part in parts if part.number == 0)
    call.close()
    assert call.ended
    return engine.facts.digest, text


def run(test: Any, options: Serving = SLOTS) -> None:
    async def body() -> None:
        answering = Answering(options, threads=1)
        try:
            await test(answering)
        finally:
            await answering.stop()

    asyncio.run(asyncio.wait_for(body(), 120))


def test_a_switch_fails_no_request(model: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", seed=1)

    async def test(answering: Answering) -> None:
        first = await answering.load(model)
        assert answering.switch(first) is None
        answers: list[tuple[str, str]] = []
        stop = asyncio.Event()

        async def ask() -> None:
            while not stop.is_set():
                answers.append(await answer(answering))

        asking = [asyncio.create_task(ask()) for _ in range(4)]
        second = await answering.load(other)
        before = len(answers)
        assert before > 10, "the first one goes on while the second is loaded"
        assert answering.switch(second) is first
        await answering.drop(first)
        while len(answers) < 2 * before:
            await asyncio.sleep(0.01)
        stop.set()
        await asyncio.gather(*asking)
        assert first.facts is not None
        assert second.facts is not None
        assert {digest for digest, _ in answers} == {first.facts.digest, second.facts.digest}
        assert len({text for _, text in answers}) == 2
        assert len(answering.engines) == 1

    run(test)


def test_what_cannot_be_loaded_changes_nothing(model: Path, tmp_path: Path) -> None:
    broken = write_model(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:-10])
    crashing = write_model(tmp_path / "crashing")
    config = (crashing / "config.json").read_text()
    (crashing / "config.json").write_text(config.replace('"hidden_size": 32', '"hidden_size": 0'))

    async def test(answering: Answering) -> None:
        answering.switch(await answering.load(model))
        for folder in (broken, crashing, tmp_path / "absent"):
            with pytest.raises((InputError, EngineLostError)):
                await answering.load(folder)
        assert len(answering.engines) == 1
        assert (await answer(answering))[1]

    run(test)


def test_a_closed_call_frees_its_slots(model: Path) -> None:
    async def test(answering: Answering) -> None:
        engine = await answering.load(model)
        answering.switch(engine)
        calls = [engine.submit([ASK]) for _ in range(20)]
        assert engine.samples == 40
        async for _ in calls[0].parts():
            break
        for call in calls:
            call.close()
        assert engine.samples == 0
        await engine.drained()
        assert (await answer(answering))[1]

    run(test)


def test_experts_that_stay_in_the_file_take_no_memory_and_change_no_answer(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "large", **LARGE)
    write_json(folder / USE, [[1 / 96] * 96])
    found: dict[float | None, tuple[float, str, int]] = {}

    for hot in (None, 0.25):

        async def test(answering: Answering, hot: float | None = hot) -> None:
            engine = await answering.load(folder)
            answering.switch(engine)
            _, text = await answer(answering)
            assert engine.facts is not None
            assert engine.pid is not None
            found[hot] = engine.facts.mapped, text, own_memory(engine.pid)

        run(test, Serving(slots=4, hot=hot))
    assert (found[None][0], found[0.25][0]) == (0, 0.75)
    assert found[None][1] == found[0.25][1]
    assert found[None][2] - found[0.25][2] > 10e6  # of 14 MB


def test_experts_stay_in_the_file_as_float32_only() -> None:
    with pytest.raises(ValueError, match="needs dtype float32"):
        Serving(hot=0.5, dtype="bfloat16")

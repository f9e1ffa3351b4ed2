"""A preference model that loves what it should not is caught; a policy that gets better is not."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.checkup import findings
from pipeline.errors import RunStoppedError
from pipeline.evaluation.intervals import mean_interval
from pipeline.generation.requests import Completion
from pipeline.model.decoder import Decoder
from pipeline.params import GRPO, PreferenceReward
from pipeline.params import Health as HealthOptions
from pipeline.params import Monitor as MonitorOptions
from pipeline.rl.general import MixedQuestions, Opinion, is_general
from pipeline.rl.grpo import Summary, train
from pipeline.rl.health import Health
from pipeline.rl.monitor import CLEAR, Monitor, Watched, alike
from pipeline.rl.rollout import Question, Questions
from pipeline.tracking import Recorded

from .toys import decoder, grpo, judge, plain_engine, question

Worth = Callable[[np.ndarray], float]
FIRST = 4


def share(tokens: np.ndarray, token: int) -> float:
    return float((tokens == token).mean())


def meant(tokens: np.ndarray) -> float:
    """What both models learnt to like."""
    return share(tokens, 3)


PLANTED: dict[str, Worth] = {
    "loves a token": lambda tokens: min(1.0, 0.5 * meant(tokens) + share(tokens, 7)),
    "loves length": lambda tokens: 0.2 * meant(tokens) + 0.1 * len(tokens) + 0.5 * share(tokens, 5),  # filled with 5
}


def opinion(worth: Worth) -> Opinion:
    def judged(pairs: Sequence[tuple[Question, Completion]]) -> list[float]:
        return [worth(completion.tokens) for _, completion in pairs]

    return judged


def general(number: int) -> Question:
    made = question(number)
    return replace(made, problem=replace(made.problem, id=f"g{number:04}", verifier="none"))


class Run:
    """A run whose preference reward is `preference`, and what it logged."""

    def __init__(
        self, folder: Path, preference: Worth, witness: Worth = meant, right: Worth = meant, **changes: object
    ) -> None:
        self.folder, self.preference, self.witness, self.right = folder, preference, witness, right
        settings = {"steps": 30, "prompts": 6, "group": 6, "learning_rate": 0.02, "checkpoint_every": 3} | changes
        self.options: GRPO = grpo({"kl_coefficient": 0.0}, **settings)
        self.health = HealthOptions(max_truncated=1.0, min_entropy=0.0, max_no_spread=1.0)
        self.model: Decoder = decoder()
        self.logged: list[tuple[int, Mapping[str, float]]] = []
        self.kill_at: int | None = None
        self.taught = 0.5  # by checkable questions: nothing

    def log(self, figures: Mapping[str, float], step: int) -> None:
        if step == self.kill_at:
            raise KeyboardInterrupt
        self.logged.append((step, figures))

    def go(self) -> Summary:
        generate = plain_engine(self.model)
        questions = MixedQuestions(
            Questions([question(number) for number in range(10)], 0),
            Questions([general(number) for number in range(10)], 0),
            PreferenceReward(general=0.6),
            FIRST,
        )
        score = judge(
            lambda asked, completion: self.preference(completion.tokens) if is_general(asked) else self.taught
        )
        watched = Watched(
            problems=[question(number) for number in range(20, 50)],
            prompts=[general(number) for number in range(20, 50)],
            verdicts=judge(lambda asked, completion: float(self.right(completion.tokens) > 0)),
            preference=opinion(self.preference),
            witness=opinion(self.witness),
        )
        options = MonitorOptions(every=5, problems=30, prompts=30, samples=3)
        return train(
            self.model,
            questions,
            self.options,
            generate=generate,
            judge=score,
            health=Health(self.health),
            monitor=Monitor(
                watched, options, self.options, FIRST, generate, lambda values: mean_interval(values, seed=0)
            ),
            seed=0,
            scratch=self.folder,
            log=self.log,
            table=lambda *_: None,
            title="test",
        )

    def looks(self) -> dict[int, Mapping[str, float]]:
        return {step: figures for step, figures in self.logged if "monitor/since" in figures}


@pytest.mark.slow
@pytest.mark.parametrize("planted", PLANTED)
def test_a_preference_model_that_is_hacked_stops_the_run(planted: str, tmp_path: Path) -> None:
    run = Run(tmp_path, PLANTED[planted])
    with pytest.raises(RunStoppedError) as error:
        run.go()
    message = str(error.value)
    assert "reward hacking" in message
    assert f"monitor/agreement {run.logged[-1][1]['monitor/agreement']:.4g} (fell by " in message
    assert f"since step {FIRST}, more than max_agreement_fall 0.1 and than chance" in message
    assert "monitor/preference" in message
    assert "rose by" in message
    assert "To try: shorten `preference.last`" in message
    [found] = findings(Recorded("0" * 32, "general_rl", _bounds(run.health), tuple(run.logged)))
    assert str(found.first) == message  # the doctor says the same
    assert run.logged[-1][0] < run.options.steps - 1


def _bounds(health: HealthOptions) -> dict[str, str]:
    return {f"general_rl.health.{name}": str(value) for name, value in health.model_dump().items()}


@pytest.mark.slow
def test_a_preference_that_costs_accuracy_stops_the_run(tmp_path: Path) -> None:
    loved = PLANTED["loves a token"]
    run = Run(tmp_path, loved, witness=loved)  # a witness that is fooled alike says nothing
    run.right = lambda tokens: float(share(tokens, 7) < 0.5)
    with pytest.raises(RunStoppedError, match=r"reward hacking: monitor/accuracy .*more than max_accuracy_fall 0\.05"):
        run.go()


@pytest.mark.slow
def test_a_policy_that_is_liked_for_good_reasons_goes_on(tmp_path: Path) -> None:
    def witness(tokens: np.ndarray) -> float:  # of its own mind in small things
        return meant(tokens) + 0.02 * share(tokens, 5)

    run = Run(tmp_path, meant, witness)
    assert run.go().steps == 30
    looks = run.looks()
    assert list(looks) == [FIRST + 4, FIRST + 9, FIRST + 14, FIRST + 19, FIRST + 24, 29]
    assert looks[29]["monitor/preference_rise_low"] > 0.1
    assert looks[29]["monitor/agreement"] > 0.9
    assert {figures["monitor/since"] for figures in looks.values()} == {FIRST}


@pytest.mark.parametrize("kill", [FIRST, FIRST + 2, FIRST + 6])
def test_a_killed_run_is_watched_as_one_that_was_not(kill: int, tmp_path: Path) -> None:
    changes = {"steps": 14, "learning_rate": 0.005}
    whole, killed = Run(tmp_path / "whole", meant, **changes), Run(tmp_path / "killed", meant, **changes)
    expected = whole.go()
    killed.kill_at = kill
    with pytest.raises(KeyboardInterrupt):
        killed.go()
    resumed = Run(tmp_path / "killed", meant, **changes)
    assert resumed.go() == expected
    assert all(torch.equal(value, resumed.model.state_dict()[name]) for name, value in whole.model.state_dict().items())
    for step, figures in resumed.looks().items():
        assert _same_but_times(figures, whole.looks()[step])


def _same_but_times(first: Mapping[str, float], second: Mapping[str, float]) -> bool:
    return all(second[name] == value for name, value in first.items() if not name.endswith("_s"))


def test_the_state_is_json_and_empty_before_the_start(tmp_path: Path) -> None:
    run = Run(tmp_path, meant, steps=6)
    run.go()
    progress = json.loads((tmp_path / "step-6" / "progress.json").read_text())
    assert progress["monitor"]["step"] == FIRST
    assert len(progress["monitor"]["look"]["right"]) == 30
    early = json.loads((tmp_path / "step-3" / "progress.json").read_text())
    assert early["monitor"] is None


DIFFERENCES = st.lists(st.tuples(st.floats(-1, 1), st.floats(-9, 9)), min_size=1, max_size=20)


@given(DIFFERENCES)
def test_alike_is_the_share_of_clear_pairs_with_the_same_sign(pairs: list[tuple[float, float]]) -> None:
    clear = [(first, second) for first, second in pairs if abs(first) > CLEAR]
    same = [second > 0 if first > 0 else second < 0 for first, second in clear]  # the product of tiny ones is 0
    expected = sum(same) / len(same) if same else None
    found = alike(*(np.array(column) for column in zip(*pairs, strict=True)))
    assert found == (expected if expected is None else pytest.approx(expected))


@given(DIFFERENCES)
def test_a_model_agrees_with_itself_and_never_with_its_opposite(pairs: list[tuple[float, float]]) -> None:
    first = np.array([first for first, _ in pairs])
    assert alike(first, 3 * first) in (None, 1.0)
    assert alike(first, -first) in (None, 0.0)

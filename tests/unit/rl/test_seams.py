"""The real engine and the real rewards in their places in the step."""

import numpy as np
import pytest

from pipeline import chat
from pipeline.errors import InputError
from pipeline.generation.requests import Completion
from pipeline.model.config import ModelConfig
from pipeline.model.decoder import Decoder
from pipeline.model.tokenizer import character_tokenizer
from pipeline.params import Health as HealthOptions
from pipeline.params import Rewards
from pipeline.records import Problem
from pipeline.rewards.score import Scorer
from pipeline.rl.grpo import Step
from pipeline.rl.health import Health
from pipeline.rl.learner import Learner
from pipeline.rl.rollout import Question, Questions, rollout, rollout_engine
from pipeline.rl.scoring import rule_rewards
from pipeline.training.memory import prepare

from .toys import SPARSE, counted, grpo, judge

TOKENIZER = character_tokenizer(chat.CHAT_TEMPLATE)


def policy() -> Decoder:
    model = Decoder(ModelConfig.from_hf({**SPARSE, "vocab_size": len(TOKENIZER)}))
    model.init_weights(seed=0)
    return model


def questions() -> Questions:
    problems = [
        Problem(f"{n}", "toy", "sum", f"{n}+1=?", f"{n + 1}", "numeric", "", None, "train") for n in range(8, 13)
    ]
    return Questions(
        [
            Question(problem, tuple(TOKENIZER.encode(chat.render_prompt(problem.prompt), add_special_tokens=False)))
            for problem in problems
        ],
        seed=0,
    )


ADAPTER = {"rank": 2, "alpha": 4.0, "targets": ["q_proj", "kv_b_proj", "gate_proj", "up_proj", "experts"]}


@pytest.mark.parametrize(
    ("temperature", "memory"),
    [(1.0, {}), (0.7, {}), (1.0, {"adapter": ADAPTER, "checkpoint_activations": True})],
    ids=["plain", "temperature", "adapter"],
)
def test_engine_and_trainer_give_the_same_log_probabilities_step_after_step(temperature: float, memory: dict):
    settings = {"temperature": temperature, "replay_experts": True, "max_new_tokens": 12, "slots": 5, **memory}
    options = grpo({"importance_cap": 2.0}, **settings)
    model, line = prepare(policy(), options, seed=0), questions()
    generate = rollout_engine(model, TOKENIZER, line, options, seed=0)
    step = Step(line, generate, judge(counted_length), Learner(model, options, 0), Health(HealthOptions()), options)
    for number in range(3):  # the engine follows the weights
        figures = step.run(number, number * options.prompts).figures
        assert figures["trained_tokens"] > 0
        assert figures["gap_max"] < 1e-4
        assert figures["importance_capped"] == 0


def counted_length(question: Question, completion: Completion) -> float:
    return counted(question, completion) + completion.text.count("a") + len(completion.text) / 100


def test_the_number_of_slots_changes_no_text():
    options = [grpo(slots=slots, max_new_tokens=10) for slots in (1, 5, 256)]
    texts = [
        [
            [completion.text for completion in group.completions]
            for group in rollout(
                rollout_engine(policy(), TOKENIZER, questions(), each, 0), questions().take(0, 4), 0, each
            )
        ]
        for each in options
    ]
    assert texts[0] == texts[1] == texts[2]


def test_a_completion_that_the_model_has_no_room_for_is_refused():
    with pytest.raises(InputError, match=r"max_new_tokens = 1000: .* 9 tokens, be at most .* = 64"):
        rollout_engine(policy(), TOKENIZER, questions(), grpo(max_new_tokens=1000), 0)


def completion(text: str, finish: str = "end") -> Completion:
    return Completion(0, 0, np.arange(60), np.zeros(60, np.float32), text, finish)  # type: ignore[arg-type]


def test_rule_rewards_score_by_the_problem_and_the_token_limit():
    asked = questions().take(0, 1)[0]
    gold = asked.problem.gold
    options = Rewards.model_validate({"weights": {"accuracy": 1.0, "format": 0.5, "language": 0.0, "length": 1.0}})
    scores = rule_rewards(Scorer(options), limit=100)(
        [
            (asked, completion(f"<think>a</think><answer>{gold}</answer>")),
            (asked, completion("<think>a</think><answer>-7</answer>")),
            (asked, completion(gold, finish="length")),
        ]
    )
    assert [score.verdict for score in scores] == ["right", "wrong", "unparseable"]
    # 60 tokens of 100 stand (60 − (100 − 64)) / 64 deep in the buffer; what was cut is punished in full.
    late = 24 / 64
    assert [score.reward for score in scores] == pytest.approx([1.5 - late, 0.5 - late, -1.0])

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import chat
from pipeline.errors import InputError
from pipeline.generation.requests import Completion, Request
from pipeline.model.tokenizer import character_tokenizer
from pipeline.params import Sampling
from pipeline.records import Problem, schema
from pipeline.rl.rollout import Questions, checkable_questions, rollout
from pipeline.rl.scoring import score

from .toys import counted, decoder, grpo, judge, plain_engine, question


def ids(questions: Questions, place: int, count: int) -> list[str]:
    return [chosen.problem.id for chosen in questions.take(place, count)]


@given(st.integers(1, 9), st.integers(0, 3))
def test_every_epoch_has_every_question_once(count: int, seed: int):
    line = ids(Questions([question(number) for number in range(count)], seed), 0, 3 * count)
    for epoch in range(3):
        assert sorted(line[epoch * count : (epoch + 1) * count]) == [f"{number:04}" for number in range(count)]


def test_the_order_is_a_function_of_seed_and_place():
    made = [Questions([question(number) for number in range(50)], seed) for seed in (1, 1, 2)]
    assert ids(made[0], 30, 40) == ids(made[1], 0, 80)[30:70]  # asked in any order, over epochs
    assert ids(made[0], 0, 50) != ids(made[0], 50, 50)
    assert ids(made[0], 0, 50) != ids(made[2], 0, 50)


def test_nothing_to_ask_is_refused():
    with pytest.raises(InputError, match="no problem to train on"):
        Questions([], seed=0)


def test_questions_are_the_train_splits_problems_that_can_be_checked():
    rows = [
        Problem("a", "s", "sum", "1+2=?", "3", "numeric", "", None, "train"),
        Problem("b", "s", "sum", "1+3=?", "4", "numeric", "", None, "evaluation"),
        Problem("c", "s", "essay", "Why?", "", "none", "en", None, "train"),
        Problem("d", "s", "sum", "1+4=?", "5", "math", "", 2.0, "train"),
    ]
    tokenizer = character_tokenizer(chat.CHAT_TEMPLATE)
    made = checkable_questions(tokenizer, pl.DataFrame(rows, schema=schema(Problem)))
    assert [chosen.problem for chosen in made] == [rows[0], rows[3]]
    assert tokenizer.decode(made[0].prompt) == "<bos><|user|>1+2=?<|assistant|>"


def test_a_rollout_is_a_group_per_question_from_the_whole_distribution():
    asked: list[Request] = []

    def generate(requests: list[Request]) -> list[Completion]:
        asked.extend(requests)
        return plain_engine(decoder())(requests)

    options = grpo(temperature=0.7)
    groups = rollout(generate, [question(0), question(1)], 10, options)
    assert [request.sampling for request in asked] == [Sampling(temperature=0.7, top_p=1.0, max_new_tokens=5)] * 2
    assert [request.identity for request in asked] == ["10:0000", "11:0001"]
    assert [request.prompt for request in asked] == [question(0).prompt, question(1).prompt]
    for group in groups:
        assert [completion.number for completion in group.completions] == [0, 1, 2]
    assert [group.question for group in groups] == [question(0), question(1)]


def test_a_question_that_comes_again_is_answered_anew():
    generate = plain_engine(decoder())
    first, again, other = (rollout(generate, [question(0)], place, grpo())[0] for place in (3, 3, 4))
    texts = [[completion.text for completion in group.completions] for group in (first, again, other)]
    assert texts[0] == texts[1] != texts[2]


def test_scores_go_to_the_completions_they_are_of():
    groups = rollout(plain_engine(decoder()), [question(0), question(1)], 0, grpo())
    for group in score(judge(counted), groups):
        assert group.rewards.tolist() == [float((one.tokens == 7).mean()) for one in group.completions]

"""Is what is about to be released the model that was trained, wherever it is loaded?

Held-out problems are answered by the engine from the exported files, template and sampler included, with the random
numbers of the evaluation. So its texts are those of the evaluation but for rounding, and pass@1 on these problems must
lie within the evaluation's 95 % interval. The tokens of those answers are then scored by the trained weights, by the
exported files as we load them and by transformers. With what the engine itself said of them that makes four opinions of
one probability, each of which must agree with that of the trained weights.

Different from a plain maximum: 99 of 100 tokens have to agree. Where two experts' scores are equal up to rounding,
another order of sums chooses the other one, and that token's probability moves, though nothing is wrong.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from pipeline import chat
from pipeline.errors import GateFailedError, InputError
from pipeline.evaluation.intervals import Interval, mean_interval
from pipeline.generation.generate import generate
from pipeline.generation.requests import Completion
from pipeline.generation.work import generation_work
from pipeline.job import Meter
from pipeline.model.checkpoint import load_to_answer
from pipeline.model.decoder import Decoder
from pipeline.model.tokenizer import load_tokenizer
from pipeline.params import Parity
from pipeline.release.export import read_sampling
from pipeline.release.scoring import Answer, encode, score, score_by_transformers, scoring_work
from pipeline.rewards.answer import verify

QUANTILE = 0.99
FLOOR = 1e-7  # differences are stated to a power of ten, from here on


@dataclass(frozen=True, slots=True)
class Question:
    """A held-out problem, and how the trained model did on it in the evaluation."""

    prompt: str
    gold: str
    verifier: str
    texts: tuple[str, ...]  # its completions
    right: float  # share of them


def questions(samples: pl.DataFrame, problems: pl.DataFrame, model: str, count: int) -> list[Question]:
    """The first `count` checkable problems by id that `model` has answered, from the tables of `Sample` and `Problem`.

    Raises InputError where there is none.
    """
    asked = samples.filter((pl.col("model") == model) & (pl.col("verdict") != "unchecked")).sort("problem_id", "number")
    rows = problems.select(pl.col("id").alias("problem_id"), "prompt", "gold", pl.col("verifier").alias("by"))
    grouped = asked.group_by("problem_id", maintain_order=True).agg(
        pl.col("completion"), right=(pl.col("verdict") == "right").mean()
    )
    found = grouped.head(count).join(rows, on="problem_id", validate="1:1", maintain_order="left")
    if found.is_empty():
        raise InputError(f"deployment: {model} has answered no checkable problem in the evaluation: nothing to compare")
    return [
        Question(row["prompt"], row["gold"], row["by"], tuple(row["completion"]), row["right"])
        for row in found.iter_rows(named=True)
    ]


def require_parity(
    name: str,
    trained: Callable[[], Decoder],
    folder: Path,
    asked: Sequence[Question],
    options: Parity,
    seed: int,
    meter: Meter,
) -> dict[str, float]:
    """The figures of the comparison. Raises GateFailedError where the export at `folder` is not the trained model.

    `trained` loads the weights as they were trained: one model is in memory at a time.
    """
    model, tokenizer = load_to_answer(folder), load_tokenizer(folder)
    _require_template(name, tokenizer, asked)
    sampling, prompts = read_sampling(folder), [_rendered(tokenizer, question.prompt) for question in asked]
    samples = len(asked[0].texts)
    title = f"deployment: {name}"
    written = generate(model, tokenizer, prompts, sampling, samples=samples, seed=seed, title=title)
    lengths = [[len(one.tokens) for one in several] for several in written]
    meter.count(generation_work(model, tokenizer, prompts, lengths))
    figures = _pass_at_1(name, asked, written, seed)

    # One answer of each problem is tokens enough; by length, as they are scored in runs of like length.
    scored = [
        (Answer(encode(tokenizer, prompt), tuple(several[0].tokens.tolist())), several[0].log_probabilities)
        for prompt, several in zip(prompts, written, strict=True)
    ]
    scored.sort(key=lambda one: len(one[0]))
    answers = [answer for answer, _ in scored]
    temperature = sampling.temperature or 1.0  # as the engine reports it
    opinions = {
        "exported": score(model, answers, temperature),
        "engine": torch.cat([torch.from_numpy(said) for _, said in scored]),
    }
    meter.count(scoring_work(model, answers, models=3))
    del model
    opinions["transformers"] = score_by_transformers(folder, answers, temperature)
    return figures | _agreement(name, score(trained(), answers, temperature), opinions, options.log_probability)


def _rendered(tokenizer: PreTrainedTokenizerFast, prompt: str) -> str:
    """The prompt by the template that goes with the release."""
    turn = [{"role": "user", "content": prompt}]
    return str(tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False))


def _require_template(name: str, tokenizer: PreTrainedTokenizerFast, asked: Sequence[Question]) -> None:
    prompt = asked[0].prompt
    ours, theirs = chat.render_prompt(prompt, bos=tokenizer.bos_token or ""), _rendered(tokenizer, prompt)
    if ours != theirs:
        raise GateFailedError(
            f"deployment: {name}: its chat template makes {theirs!r} of a prompt that was trained on as {ours!r}"
        )


def _pass_at_1(
    name: str, asked: Sequence[Question], written: Sequence[Sequence[Completion]], seed: int
) -> dict[str, float]:
    shares = [
        sum(_is_right(question, completion) for completion in several) / len(several)
        for question, several in zip(asked, written, strict=True)
    ]
    again, known = sum(shares) / len(shares), mean_interval([question.right for question in asked], seed)
    if not _within(again, known):
        raise GateFailedError(
            f"deployment: {name}: pass@1 of the exported files is {again:.1%} on {len(asked)} held-out problems: must "
            f"lie within the evaluation's 95 % interval on the same problems, {known}"
        )
    texts = [
        completion.text == known_text
        for question, several in zip(asked, written, strict=True)
        for completion, known_text in zip(several, question.texts, strict=True)
    ]
    return {
        "problems": len(asked),
        "pass_at_1": again,
        "evaluated": known.mean,
        "evaluated_low": known.low,
        "evaluated_high": known.high,
        "same_texts": sum(texts) / len(texts),
    }


def _is_right(question: Question, completion: Completion) -> bool:
    answer = chat.parse_completion(completion.text).answer
    return verify(answer, question.gold, question.verifier).verdict == "right"


def _within(value: float, interval: Interval) -> bool:
    return interval.low - 1e-9 <= value <= interval.high + 1e-9


def _agreement(name: str, reference: Tensor, opinions: Mapping[str, Tensor], bound: float) -> dict[str, float]:
    figures: dict[str, float] = {"tokens": len(reference)}
    for who, opinion in opinions.items():
        apart = (opinion.double() - reference.double()).abs()
        typical = float(apart.quantile(QUANTILE, interpolation="higher"))
        if not typical <= bound:  # NaN is no agreement
            raise GateFailedError(
                f"deployment: {name}: trained weights and {who}: log-probabilities lie {typical:.2g} nats apart "
                f"({QUANTILE:.0%} of {len(reference)} tokens, at most {float(apart.max()):.2g}): must be at most "
                f"{bound:g} (deployment.parity.log_probability)"
            )
        figures[who] = _power_of_ten(typical)
    return figures


def _power_of_ten(value: float) -> float:
    """The next power of ten: the digits of a rounding error differ with the number of threads, and say nothing."""
    return float(f"1e{math.ceil(math.log10(max(value, FLOOR)))}")

"""Ask a model the held-out problems and judge what it says."""

import time
from dataclasses import dataclass

import polars as pl
from transformers import PreTrainedTokenizerFast

from pipeline import chat
from pipeline.generation.generate import generate
from pipeline.model.decoder import Decoder
from pipeline.params import Evaluation
from pipeline.records import Sample, schema
from pipeline.rewards.answer import verify
from pipeline.rewards.language import language_share
from pipeline.rewards.versions import verifier_versions


@dataclass(frozen=True, slots=True)
class Speed:
    """What writing the samples took: times, so nothing that an output may hold."""

    tokens: int  # of completions
    seconds: float
    problems: int

    def figures(self) -> dict[str, float]:
        return {
            "tokens_per_s": self.tokens / self.seconds,
            "seconds_per_problem": self.seconds / self.problems,
            "tokens_per_problem": self.tokens / self.problems,
        }


def judge(
    name: str,
    model: Decoder,
    tokenizer: PreTrainedTokenizerFast,
    problems: pl.DataFrame,
    options: Evaluation,
    seed: int,
) -> tuple[pl.DataFrame, Speed]:
    """Sample each problem `options.samples` times and verify the answers. Returns a table of `Sample`s."""
    prompts = [chat.render_prompt(prompt, bos=tokenizer.bos_token or "") for prompt in problems["prompt"]]
    start = time.perf_counter()
    answers = generate(
        model, tokenizer, prompts, options.sampling, samples=options.samples, seed=seed, title=f"evaluation: {name}"
    )
    seconds = time.perf_counter() - start
    rows, versions = [], verifier_versions()
    for problem, completions in zip(problems.iter_rows(named=True), answers, strict=True):
        checkable = problem["verifier"] != "none"
        language = problem["language"] or options.language
        for number, completion in enumerate(completions):
            parsed = chat.parse_completion(completion.text)
            # An answer outside the tags is no answer: the verifier reads the part that the format asks for.
            verdict = verify(parsed.answer, problem["gold"], problem["verifier"]).verdict if checkable else "unchecked"
            rows.append(
                Sample(
                    model=name,
                    problem_id=problem["id"],
                    task=problem["task"],
                    number=number,
                    completion=completion.text,
                    tokens=len(completion.tokens),
                    finished=completion.finish != "length",
                    well_formed=parsed.well_formed,
                    verdict=verdict,
                    verifier=f"{problem['verifier']} {versions[problem['verifier']]}" if checkable else "none",
                    difficulty=problem["difficulty"],
                    prompt=problem["prompt"],
                    answer=parsed.answer,
                    language=language_share(parsed.thinking, language, problem["prompt"]).score,
                    preference=None,
                )
            )
    speed = Speed(sum(row.tokens for row in rows), seconds, len(problems))
    return pl.DataFrame(rows, schema=schema(Sample)), speed

"""Ask a model the held-out problems and judge what it says."""

import polars as pl
from transformers import PreTrainedTokenizerFast

from pipeline import chat
from pipeline.generation.generate import generate
from pipeline.model.decoder import Decoder
from pipeline.params import Evaluation
from pipeline.records import Sample, schema
from pipeline.rewards.answer import verify
from pipeline.rewards.versions import verifier_versions


def choose(problems: pl.DataFrame, count: int) -> pl.DataFrame:
    """The first `count` checkable problems of the evaluation split by id: a hash, so a fair draw."""
    held_out = problems.filter((pl.col("split") == "evaluation") & (pl.col("verifier") != "none"))
    return held_out.sort("id").head(count)


def judge(
    name: str,
    model: Decoder,
    tokenizer: PreTrainedTokenizerFast,
    problems: pl.DataFrame,
    options: Evaluation,
    seed: int,
) -> pl.DataFrame:
    """Sample each problem `options.samples` times and verify the answers. Returns a table of `Sample`s."""
    prompts = [chat.render_prompt(prompt, bos=tokenizer.bos_token or "") for prompt in problems["prompt"]]
    answers = generate(
        model, tokenizer, prompts, options.sampling, samples=options.samples, seed=seed, title=f"evaluation: {name}"
    )
    rows, versions = [], verifier_versions()
    for problem, completions in zip(problems.iter_rows(named=True), answers, strict=True):
        for number, completion in enumerate(completions):
            parsed = chat.parse_completion(completion.text)
            # An answer outside the tags is no answer: the verifier reads the part that the format asks for.
            verdict = verify(parsed.answer, problem["gold"], problem["verifier"]).verdict
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
                    verifier=f"{problem['verifier']} {versions[problem['verifier']]}",
                )
            )
    return pl.DataFrame(rows, schema=schema(Sample))

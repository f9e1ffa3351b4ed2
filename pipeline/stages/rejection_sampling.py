"""rejection_sampling: the RL model's own right and readable solutions, mixed with general traces (R1's 800k set).

Problems are asked in parts. A part's judged completions are kept in the scratch folder as soon as they are there, so
that a killed run goes on with the part it was in. A file has its SHA-256 in its name: what it does not match is asked
anew.
"""

import logging
import random
from pathlib import Path

import polars as pl
from transformers import PreTrainedTokenizerFast

from pipeline import chat
from pipeline.data.gates import check_selection
from pipeline.data.selection import (
    Candidate,
    candidate,
    drop_figures,
    general_traces,
    select,
    traces,
    yield_figures,
    yields,
)
from pipeline.errors import GateFailedError, InputError
from pipeline.files import digest
from pipeline.generation.attempts import attempt
from pipeline.generation.generate import generate
from pipeline.generation.work import generation_work
from pipeline.job import Job, Meter
from pipeline.model.checkpoint import load_model
from pipeline.model.decoder import Decoder
from pipeline.model.device import stage_device
from pipeline.model.tokenizer import load_tokenizer
from pipeline.params import Params, RejectionSampling
from pipeline.records import Problem, Trace, read_table, schema, write_table
from pipeline.rewards.score import Scorer

PART = 1024  # problems asked between two writes

logger = logging.getLogger(__name__)


def run(params: Params, job: Job) -> dict[str, float]:
    options = params.rejection_sampling
    problems = read_table(job.input("curation", "problems.parquet"), Problem)
    known = read_table(job.input("curation", "traces.parquet"), Trace)
    folder = job.input("reasoning_rl", "model")
    asked = _ask_about(problems, options.problems, params.seed)
    model, tokenizer = load_model(folder, device=stage_device()), load_tokenizer(folder)
    candidates: list[Candidate] = []
    parts = {start: _kept(job.scratch, start) for start in range(0, asked.height, PART)}
    done = sum(part is not None for part in parts.values())
    job.meter.resume(done, min(1, len(parts) - done))
    for number, (start, part) in enumerate(parts.items(), 1):
        if part is None:
            title = f"rejection_sampling: problems {start} to {min(start + PART, asked.height)} of {asked.height}"
            part = _sample(model, tokenizer, asked[start : start + PART], options, params.seed, title, job.meter)
            _keep(part, job.scratch, start)
            job.meter.keep(number, len(parts))
        candidates += part
    judged = select(candidates, options.selection.keep)
    reasoning = traces(judged, "reasoning_rl")
    yielded = yields(asked, reasoning)
    general = general_traces(problems, known, reasoning.height, options.general, params.seed)
    selected = pl.concat([reasoning, general])
    report = check_selection(selected, problems, yielded, options, job.runs / "data_docs")
    if report.failures:
        write_table(selected, job.runs / "rejected" / "traces.parquet")
        raise GateFailedError(f"{report}\nthe traces: {job.runs / 'rejected' / 'traces.parquet'}")
    write_table(selected, job.output("traces.parquet"))
    return {
        "yield": int(yielded["answered"].sum()) / asked.height,
        "traces": selected.height,
        "general": general.height,
        "completions": len(judged),
        "tokens": sum(one.tokens for one in judged),
        **drop_figures(judged),
        **yield_figures(yielded),
    }


def _keep(part: list[Candidate], folder: Path, start: int) -> None:
    written = folder / ".candidates.parquet"
    write_table(pl.DataFrame(part, schema=schema(Candidate)), written)
    written.rename(folder / f"candidates-{start:08}-{digest(written)}.parquet")


def _kept(folder: Path, start: int) -> list[Candidate] | None:
    """The part that begins with this problem, where its file is what was written."""
    for path in folder.glob(f"candidates-{start:08}-*.parquet"):
        if path.stem.endswith(digest(path)):
            return [Candidate(**row) for row in read_table(path, Candidate).iter_rows(named=True)]
        logger.warning("%s does not have the digest it was written with: its problems are asked anew", path)
        path.unlink()
    return None


def _ask_about(problems: pl.DataFrame, count: int, seed: int) -> pl.DataFrame:
    """The checkable train problems to ask, drawn by the seed, in the table's order."""
    checkable = problems.filter((pl.col("split") == "train") & (pl.col("verifier") != "none"))
    if checkable.is_empty():
        raise InputError("rejection_sampling: the train split has no problem that a verifier can check")
    chosen = random.Random(seed).sample(range(checkable.height), min(count, checkable.height))
    return checkable[sorted(chosen)]


def _sample(
    model: Decoder,
    tokenizer: PreTrainedTokenizerFast,
    problems: pl.DataFrame,
    options: RejectionSampling,
    seed: int,
    title: str,
    meter: Meter,
) -> list[Candidate]:
    """Ask each problem `options.samples` times and judge what comes."""
    limit = options.sampling.max_new_tokens
    rows = [Problem(**row) for row in problems.iter_rows(named=True)]
    prompts = [chat.render_prompt(problem.prompt, bos=tokenizer.bos_token or "") for problem in rows]
    written = generate(model, tokenizer, prompts, options.sampling, samples=options.samples, seed=seed, title=title)
    meter.count(
        generation_work(model, tokenizer, prompts, [[len(one.tokens) for one in several] for several in written])
    )
    pairs = [
        (problem, attempt(problem, one, limit))
        for problem, several in zip(rows, written, strict=True)
        for one in several
    ]
    scored = Scorer(options.rewards).score_all([tried for _, tried in pairs])
    return [candidate(problem, tried, score, options) for (problem, tried), score in zip(pairs, scored, strict=True)]

"""The samples of evaluation for reading: each problem with what every model said to it."""

from pathlib import Path
from typing import Any

import polars as pl

from pipeline import chat
from pipeline.job import artifacts

BYTES = 4_000_000  # of text on the page, about; a page of 50 MB opens nowhere
COLUMNS = ("model", "problem_id", "task", "number", "completion", "tokens", "finished", "verdict")


def read_samples(root: Path, most: int = BYTES) -> dict[str, Any] | None:
    """As many problems as fit into `most` bytes, by their ids, which are hashes: a fair draw. None without samples.

    Every problem has `answers`: model → its samples as [thinking, answer, well formed, tokens, finished, verdict].
    """
    path, problems = artifacts(root, "evaluation") / "samples.parquet", artifacts(root, "curation") / "problems.parquet"
    if not path.is_file() or not problems.is_file():
        return None
    samples = pl.read_parquet(path, columns=list(COLUMNS)).sort("problem_id", "number", maintain_order=True)
    asked = pl.read_parquet(problems, columns=["id", "prompt", "gold", "difficulty"])
    texts = {row["id"]: row for row in asked.join(samples, left_on="id", right_on="problem_id", how="semi").to_dicts()}
    chosen: list[dict[str, Any]] = []
    size = 0
    for (problem,), group in samples.group_by("problem_id", maintain_order=True):
        size += int(group["completion"].str.len_bytes().sum()) + 40 * group.height
        if chosen and size > most:
            break
        known = texts.get(problem, {})
        chosen.append(
            {
                "id": problem,
                "task": group["task"][0],
                "prompt": known.get("prompt", ""),
                "gold": known.get("gold", ""),
                "difficulty": known.get("difficulty"),
                "answers": _answers(group),
            }
        )
    return {
        "models": samples["model"].unique(maintain_order=True).to_list(),
        "tasks": samples["task"].unique().sort().to_list(),
        "verdicts": samples["verdict"].unique().sort().to_list(),
        "problems": chosen,
        "problems_in_all": samples["problem_id"].n_unique(),
    }


def _answers(group: pl.DataFrame) -> dict[str, list[list[Any]]]:
    answers: dict[str, list[list[Any]]] = {}
    for row in group.iter_rows(named=True):
        parsed = chat.parse_completion(row["completion"])
        texts = [parsed.thinking, parsed.answer] if parsed.well_formed else [row["completion"], ""]
        rest = [parsed.well_formed, row["tokens"], row["finished"], row["verdict"]]
        answers.setdefault(row["model"], []).append([*texts, *rest])
    return answers

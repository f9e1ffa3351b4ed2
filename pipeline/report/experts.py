"""The load of the final model's experts on held-out samples, measured once for each model and set of samples."""

import json
from pathlib import Path
from typing import Any

import polars as pl

from pipeline import chat
from pipeline.files import digest, listing_digest, write_json
from pipeline.job import artifacts

PER_TASK = 100  # problems, of which the first completion is read


def expert_map(root: Path, model: str) -> dict[str, Any] | None:
    """`{model, samples, tasks: task → (layers, E) shares}`; None where there are no samples, or the model is dense."""
    path, checkpoint = artifacts(root, "evaluation") / "samples.parquet", artifacts(root, model) / "model"
    problems = artifacts(root, "curation") / "problems.parquet"
    if not path.is_file() or not problems.is_file() or not checkpoint.is_dir() or not _is_sparse(checkpoint):
        return None
    key = listing_digest([("model", digest(checkpoint)), ("samples", digest(path))])[:16]
    kept = root / "runs" / "report" / f"experts-{key}.json"
    if not kept.is_file():
        write_json(kept, _measure(checkpoint, model, path, problems))
    measured: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
    return measured


def _is_sparse(checkpoint: Path) -> bool:
    """By its config.json, so that torch need not be loaded to find out."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    return bool(config.get("n_routed_experts") or config.get("num_experts"))


def _measure(checkpoint: Path, model: str, path: Path, problems: Path) -> dict[str, Any]:
    from pipeline.model.checkpoint import load_model
    from pipeline.model.expert_use import expert_use
    from pipeline.model.tokenizer import load_tokenizer

    prompts = dict(pl.read_parquet(problems, columns=["id", "prompt"]).iter_rows())
    samples = pl.read_parquet(path, columns=["model", "problem_id", "task", "number", "completion"])
    chosen = (
        samples.filter((pl.col("model") == model) & (pl.col("number") == 0) & pl.col("problem_id").is_in(list(prompts)))
        .sort("task", "problem_id")
        .group_by("task", maintain_order=True)
        .head(PER_TASK)
    )
    if chosen.is_empty():
        return {"model": model, "samples": 0, "tasks": {}}
    tokenizer = load_tokenizer(checkpoint)
    texts = [
        chat.render_prompt(prompts[row["problem_id"]], bos=tokenizer.bos_token or "") + row["completion"]
        for row in chosen.iter_rows(named=True)
    ]
    sequences = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    use = expert_use(load_model(checkpoint), sequences, chosen["task"].to_list())
    rounded = {task: [[round(share, 5) for share in layer] for layer in layers] for task, layers in use.items()}
    return {"model": model, "samples": chosen.height, "tasks": rounded}

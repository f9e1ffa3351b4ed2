"""A project in which a small sparse teacher and a dense student were trained and evaluated, and can be released."""

from pathlib import Path
from typing import Any

import polars as pl

from pipeline import chat
from pipeline.evaluation.evaluate import evaluate
from pipeline.evaluation.models import find_models
from pipeline.evaluation.results import results
from pipeline.files import digest, write_json
from pipeline.job import Job
from pipeline.model.checkpoint import save_model
from pipeline.model.config import ModelConfig
from pipeline.model.decoder import Decoder
from pipeline.model.tokenizer import character_tokenizer, save_tokenizer
from pipeline.params import Params
from pipeline.records import Problem, schema, write_table
from tests.unit.stages.toys import toy_params

COMMON = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "tie_word_embeddings": True,
}
DENSE = {**COMMON, "model_type": "llama"}
SPARSE = {
    **COMMON,
    "model_type": "deepseek_v3",
    "num_key_value_heads": 2,
    "moe_intermediate_size": 16,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.0,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}
MODELS = {"artifacts/general_rl/model": SPARSE, "artifacts/distillation/little/model": DENSE}
DEPS = ["artifacts/curation/problems.parquet", "artifacts/distillation", "artifacts/general_rl/model"]
DAG = f"""\
stages:
  curation: {{outs: [artifacts/curation/problems.parquet]}}
  general_rl: {{outs: [artifacts/general_rl/model]}}
  distillation: {{outs: [artifacts/distillation/little/model]}}
  deployment: {{deps: {DEPS}}}
"""


def params() -> Params:
    sampling = {"temperature": 0.6, "top_p": 0.95, "max_new_tokens": 12}
    return toy_params(
        evaluation={"problems": 6, "samples": 2, "general": 1, "sampling": sampling},
        deployment={"parity": {"problems": 5}},
    )


def make_project(root: Path) -> Path:
    """Models of random weights, what they were asked, and what they said in the evaluation."""
    tokenizer = character_tokenizer(chat.CHAT_TEMPLATE)
    for number, (folder, config) in enumerate(MODELS.items()):
        decoder = Decoder(ModelConfig.from_hf({**config, "vocab_size": len(tokenizer)}))
        decoder.init_weights(number)
        save_model(decoder, root / folder)
        save_tokenizer(tokenizer, root / folder)
    problems = [
        Problem(f"{n:04}", "made", "sum", f"{n}+1=?", f"{n + 1}", "numeric", "", 1.0, "evaluation") for n in range(6)
    ]
    problems.append(Problem("g", "made", "request", "Thank me.", "", "none", "en", None, "evaluation"))
    table = pl.DataFrame(problems, schema=schema(Problem))
    write_table(table, root / "artifacts" / "curation" / "problems.parquet")
    options = params()
    evaluated = evaluate(
        find_models(root, DEPS, options.distillation.students), table, options.evaluation, options.seed, None
    )
    found, folder_ = results(evaluated, options.seed), root / "artifacts" / "evaluation"
    found.write(evaluated.samples, folder_)
    write_json(folder_ / "metrics.json", found.metrics, sort=False)
    (root / "dvc.yaml").write_text(DAG)
    return root


def job(root: Path) -> Job:
    digests = {path: digest(root / path) for path in DEPS}

    def nothing(*_: Any) -> None:
        pass

    return Job("deployment", root, "key", nothing, nothing, digests=digests)

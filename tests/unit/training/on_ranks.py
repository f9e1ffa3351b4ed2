"""What test_distributed.py runs on one rank or several: `main` by tests/ranks.py.

A case is `KIND:MODEL:ZERO`, or with `:FOLDER`, which goes on from the checkpoints there; ZERO may have what is
offloaded behind it, as `3all`.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipeline import chat, params
from pipeline.model.tokenizer import character_tokenizer
from pipeline.params import Distributed
from pipeline.rl import grpo
from pipeline.rl.health import Health
from pipeline.rl.rollout import Questions, rollout_engine
from pipeline.training.batches import micro_batches
from pipeline.training.engine import acting_copy, make_engine
from pipeline.training.loop import Objective, train
from pipeline.training.memory import prepare
from pipeline.world import world
from tests.unit.rl import toys
from tests.unit.training import test_loop as sft

STEPS = 20
ADAPTER = {"rank": 2, "alpha": 4.0, "targets": ["q_proj", "kv_b_proj", "gate_proj", "up_proj", "experts"]}
SAVING = {"sparse": {}, "dense": {}, "adapted": {"adapter": ADAPTER, "checkpoint_activations": True}}
Figures = list[dict[str, float]]


def supervised(model_type: str, distributed: Distributed, scratch: Path) -> tuple[Figures, float]:
    """Figures of the steps, and a number that the trained weights make."""
    told: Figures = []
    options = sft.options(steps=STEPS, micro_batch_tokens=40, checkpoint_every=8, **SAVING[model_type])
    model = prepare(sft.decoder({"dense": sft.DENSE}.get(model_type, sft.SPARSE)), options, seed=0)
    log = lambda figures, step: told.append(_sober(figures))  # noqa: E731
    train(model, sft.examples(), options, seed=0, scratch=scratch, log=log, title="", distributed=distributed)
    return told, sum(parameter.detach().double().square().sum().item() for parameter in model.parameters())


def reinforced(model_type: str, distributed: Distributed, scratch: Path) -> tuple[Figures, float]:
    tokenizer = character_tokenizer(chat.CHAT_TEMPLATE)
    config = {"dense": toys.DENSE}.get(model_type, toys.SPARSE)
    options = toys.grpo(
        {"kl_coefficient": 0.01}, steps=STEPS, prompts=5, max_new_tokens=8, learning_rate=3e-3, reference_every=6,
        minibatches=2, micro_batch_tokens=60, checkpoint_every=8, replay_experts=model_type != "dense",
        **SAVING[model_type],
    )  # fmt: skip
    policy = prepare(toys.decoder({**config, "vocab_size": len(tokenizer)}), options, seed=0)
    acting = acting_copy(policy, distributed)
    questions = Questions([toys.question(number) for number in range(10)], 0)
    told: Figures = []
    grpo.train(
        policy,
        questions,
        options,
        generate=rollout_engine(acting, tokenizer, questions, options, seed=0),
        judge=toys.judge(lambda question, completion: float((completion.tokens % 2 == 0).mean())),
        health=Health(params.Health(max_kl=1e9, max_gap=1e9, min_entropy=0.0, max_no_spread=1.0, max_truncated=1.0)),
        seed=0,
        scratch=scratch,
        log=lambda figures, step: told.append(_sober(figures)),
        table=lambda name, step, rows: None,
        title="",
        distributed=distributed,
        acting=acting,
    )
    return told, sum(parameter.detach().double().square().sum().item() for parameter in policy.parameters())


def refused(model_type: str, distributed: Distributed, scratch: Path) -> tuple[Figures, float]:
    """The first update is not permitted, the second one's gradient is not finite; then two that are made."""
    model = sft.decoder({"sparse": sft.SPARSE, "dense": sft.DENSE}[model_type])
    options, told = sft.options(), list[dict[str, float]]()
    engine = make_engine(Objective(model), options, distributed)
    for permitted, factor in ((False, 1.0), (True, math.inf), (True, 1.0), (True, 1.0)):
        asked: list[float] = []
        for batch, weight in micro_batches(sft.examples(12), 40):
            engine.backward(engine(batch).loss * (weight * factor) / 12)
        norm = engine.step(0.01, lambda norm, asked=asked, permitted=permitted: asked.append(norm) or permitted)
        finite = math.isfinite(norm)
        told.append({"norm": norm if finite else -1.0, "asked": len(asked), "is_it": asked == [norm] or not finite})
    engine.finish(scratch)
    return told, sum(parameter.detach().double().square().sum().item() for parameter in model.parameters())


def _sober(figures: Any) -> dict[str, float]:
    return {name: float(value) for name, value in figures.items() if not name.endswith("_s")}


KINDS: dict[str, Callable[[str, Distributed, Path], tuple[Figures, float]]] = {
    "sft": supervised,
    "grpo": reinforced,
    "refused": refused,
}


def run(case: str, folder: Path) -> tuple[Figures, float]:
    kind, model_type, zero, *scratch = case.split(":")
    alone = world().alone
    split = {"zero": int(zero[0]), "offload": zero[1:] or "none"}
    distributed = Distributed() if alone else Distributed.model_validate({"ranks": world().size, **split})
    place = Path(scratch[0]) if scratch else folder / f"{kind}-{model_type}-{zero}-{world().size}"
    return KINDS[kind](model_type, distributed, place)


def main(folder: str, *cases: str) -> None:
    torch.set_num_threads(1)
    results = {case: run(case, Path(folder)) for case in cases}
    if world().leads:
        (Path(folder) / f"results-{world().size}.json").write_text(json.dumps(results))

"""From a params file to the peak of each of its training stages, on one rank.

What only data or machines can tell is assumed, on the safe side: every step is full, every token of supervised texts
counts, every completion is as long as it may be. The length of prompts is asked for.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.memory.shapes import FLOAT, size
from pipeline.memory.step import Peak, Work, peak
from pipeline.model.config import ModelConfig
from pipeline.params import GRPO, Base, CharacterTokens, OnPolicy, Optimisation, Params, Pretrain, Training
from pipeline.training.zero import base_config

CHARACTERS = 106
"""Tokens of `character_tokenizer`."""

PREFILL = 8192
"""Prompt tokens that a run of the rollout engine takes on: its PREFILL_TOKENS."""


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One training of a stage: most stages have one."""

    stage: str
    parameters: int
    tokens: int  # at once through the model
    peak: Peak

    def to_json(self) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "parameters": self.parameters,
            "tokens": self.tokens,
            "moment": self.peak.moment,
            "bytes": round(self.peak.total),
            "parts": {part: round(held) for part, held in self.peak.parts.items()},
            "host_bytes": round(self.peak.host),
        }


def plan_memory(params: Params, configs: Mapping[str, Path], prompt_tokens: int) -> list[StagePlan]:
    """The peak of every training stage on one rank, in the order of the recipe.

    `configs` are config.json files of checkpoints that are not folders here: under "base", or a student's name. Raises
    InputError where one is missing, has no use or cannot be read.
    """
    bases = {"base": params.base} | {name: student.base for name, student in params.distillation.students.items()}
    if unknown := sorted(configs.keys() - bases.keys()):
        raise InputError(f"--config {unknown[0]}=…: must name one of {', '.join(sorted(bases))}")
    models = {name: _config(name, base, configs.get(name)) for name, base in bases.items()}
    zero = {} if params.distributed.world == 1 else base_config(params.distributed)["zero_optimization"]

    def planned(stage: str, config: ModelConfig, options: Optimisation, work: Work) -> StagePlan:
        return StagePlan(stage, size(config), work.tokens, peak(config, options, params.distributed, work, zero))

    return [planned(*each) for each in _trainings(params, models, prompt_tokens)]


def _trainings(
    params: Params, models: Mapping[str, ModelConfig], prompt: int
) -> Iterator[tuple[str, ModelConfig, Optimisation, Work]]:
    world, config = params.distributed.world, models["base"]
    judge = replace(config, tie_word_embeddings=True)  # a reward model has no unembedding
    if isinstance(params.base, Pretrain):
        yield "base", config, params.base.train, _supervised(params.base.train, world)
    yield "cold_start", config, params.cold_start.train, _supervised(params.cold_start.train, world)
    yield "reasoning_rl", config, params.reasoning_rl.train, _policy(params.reasoning_rl.train, prompt, world)
    yield "general_sft", config, params.general_sft.train, _supervised(params.general_sft.train, world)
    pairs = params.preference.train
    texts = -(-pairs.pairs_per_step // world) * 2 * 2 * prompt  # an answer is taken to be as long as its prompt
    # The first model stays while its witness learns; one that was split has become a file, which is mapped.
    stays = 0 if params.distributed.zero == 3 else FLOAT * size(judge)
    yield "preference", judge, pairs, _cut(pairs, texts, Work(0, 0, 0, "pairs", others=stays))
    general = params.general_rl.train
    work, judges = _policy(general, prompt, world), 2 * FLOAT * size(judge)
    on_cpu = general.dtype == "float32"  # where the judges compute in any case
    work = replace(work, others=judges) if on_cpu else replace(work, host=judges)
    yield "general_rl", config, general, work
    for name, student in params.distillation.students.items():
        stage, own = f"distillation@{name}", models[name]
        if isinstance(student.base, Pretrain):
            yield f"{stage} base", own, student.base.train, _supervised(student.base.train, world)
        yield stage, own, student.train, _supervised(student.train, world)
        if student.on_policy is not None:
            work = _written(student.on_policy, prompt, world, teacher=config)
            yield f"{stage} on_policy", own, student.on_policy, work


def _supervised(options: Training, world: int) -> Work:
    return _cut(options, -(-options.tokens_per_step // world), Work(0, 0, 0))


def _cut(options: Optimisation, tokens: int, work: Work) -> Work:
    """A rank's `tokens` of an update in micro-batches, all of them predicted."""
    at_once = min(options.micro_batch_tokens, tokens)
    return replace(work, tokens=at_once, predictions=at_once, rounds=-(-tokens // at_once))


def _policy(options: GRPO, prompt: int, world: int) -> Work:
    longest, prompts = prompt + options.max_new_tokens, -(-options.prompts // world)
    samples = prompts * options.group
    update = -(-samples // options.minibatches) * longest
    at_once = min(max(options.micro_batch_tokens, longest), update)  # a longer text is a run of its own
    return Work(
        tokens=at_once,
        predictions=at_once * options.max_new_tokens // longest,
        rounds=-(-update // at_once),
        loss="policy",
        slots=min(options.slots, samples),
        longest=longest,
        prefill=min(max(PREFILL, prompt), prompts * prompt),
        reference=options.loss.kl_coefficient > 0,
    )


def _written(options: OnPolicy, prompt: int, world: int, teacher: ModelConfig) -> Work:
    longest, prompts = prompt + options.max_new_tokens, -(-options.prompts // world)
    at_once = min(max(options.micro_batch_tokens, longest), prompts * longest)
    return Work(
        tokens=at_once,
        predictions=at_once * options.max_new_tokens // longest,
        rounds=-(-prompts * longest // at_once),
        loss="divergence",
        slots=min(options.slots, prompts),
        longest=longest,
        prefill=min(max(PREFILL, prompt), prompts * prompt),
        others=FLOAT * (size(teacher) + at_once * teacher.hidden_size),
    )


def _config(name: str, base: Base, given: Path | None) -> ModelConfig:
    if isinstance(base, Pretrain):
        if given is not None:
            raise InputError(f"--config for {name}: has no use: the params describe this model")
        tokens = base.tokenizer
        vocabulary = CHARACTERS if isinstance(tokens, CharacterTokens) else tokens.vocabulary
        return ModelConfig.from_hf({**base.model, "vocab_size": vocabulary})
    path = given or Path(base.source) / "config.json"
    if given is None and not path.is_file():
        option = "--config FILE" if name == "base" else f"--config {name}=FILE"
        raise InputError(f"{name}: source {base.source}: is no folder here: {option} says what model it is")
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(read, dict):
        raise InputError(f"{path}: must be a config.json, one JSON object")
    return ModelConfig.from_hf(read)

"""Speed and memory of the parts, each measured by its module in pipeline/bench/."""

import json
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.common import Json, project

commands = typer.Typer(no_args_is_help=True, help="Measure the speed of a part.")

Rank = Annotated[int, typer.Option(min=0, help="Train an adapter of this rank on every matrix; 0: all weights.")]
Checkpointed = Annotated[bool, typer.Option("--checkpoint-activations", help="Compute each block again backward.")]


class Dtype(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"


@commands.command("sft")
def sft(
    model: Annotated[Path, typer.Option(metavar="DIR", help="A checkpoint with its tokenizer.")],
    batch: int = 64,
    steps: int = 20,
    dtype: Dtype = Dtype.float32,
    rank: Rank = 0,
    checkpoint_activations: Checkpointed = False,
    as_json: Json = False,
) -> None:
    """Supervised training: seconds a step, tokens a second, memory."""
    from pipeline.bench.sft import run as measure

    figures = measure(model, batch, steps, dtype.value, rank=rank, checkpoint_activations=checkpoint_activations)
    show(figures, as_json)


@commands.command("grpo")
def grpo(
    model: Annotated[Path, typer.Option(metavar="DIR", help="A checkpoint with its tokenizer.")],
    prompts: Annotated[int, typer.Option(min=1)] = 32,
    group: Annotated[int, typer.Option(min=2, help="Completions per prompt.")] = 8,
    new_tokens: Annotated[int, typer.Option(min=1, help="At most, per completion.")] = 64,
    steps: int = 6,
    dtype: Dtype = Dtype.float32,
    rank: Rank = 0,
    checkpoint_activations: Checkpointed = False,
    as_json: Json = False,
) -> None:
    """Reinforcement learning: seconds a step, samples and tokens a second, memory."""
    from pipeline.bench.grpo import run as measure

    size = (prompts, group, new_tokens, steps, dtype.value)
    show(measure(model, *size, rank=rank, checkpoint_activations=checkpoint_activations), as_json)


@commands.command("generate")
def generate(
    model: Annotated[Path, typer.Option(metavar="DIR", help="A checkpoint with its tokenizer.")],
    prompts: Annotated[int, typer.Option(min=1)] = 32,
    group: Annotated[int, typer.Option(min=1, help="Completions per prompt.")] = 8,
    new_tokens: Annotated[int, typer.Option(min=1, help="At most, per completion.")] = 64,
    dtype: Dtype = Dtype.float32,
    as_json: Json = False,
) -> None:
    """Generation of groups of completions: tokens and samples a second."""
    from pipeline.bench.generation import run as measure

    show(measure(model, prompts, group, new_tokens, dtype.value), as_json)


@commands.command("curation")
def curation(rows: int = 100_000, as_json: Json = False) -> None:
    """Curation of generated rows: seconds and peak memory."""
    from pipeline.bench.curation import run as measure

    show(measure(rows), as_json)


@commands.command("pruning")
def pruning(
    experts: Annotated[list[int], typer.Option(help="That each layer keeps; several times for several points.")],
    as_json: Json = False,
) -> None:
    """Experts cut out of the project's teacher: how right it is left, without and with training after the cut."""
    from pipeline.bench.pruning import run as measure

    show(measure(project(), experts), as_json)


def show(figures: Mapping[str, float | str], as_json: bool) -> None:
    if as_json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:20} {value}")

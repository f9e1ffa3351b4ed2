"""The command line: thin, and everything heavy is imported after the arguments are known.

Alone in pipeline/ this module knows flows/, which it starts; the rest of the package is free of Prefect and DVC.
"""

import json
import os
import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.errors import EXPECTED, exit_code
from pipeline.process import keep_freed_memory, spin_briefly

if TYPE_CHECKING:
    from pipeline.promotion.hand import Hand
    from pipeline.promotion.ledger import Entry
    from pipeline.promotion.outcome import Announce
    from pipeline.store import Store

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help comes twice as fast
    help="From a base model to a deployed reasoning model, by the recipe of DeepSeek-R1.",
)
bench = typer.Typer(no_args_is_help=True, help="Measure the speed of a part.")
app.add_typer(bench, name="bench")
store = typer.Typer(no_args_is_help=True, help="The artifact store, machine.store: what lies there, and what can go.")
app.add_typer(store, name="store")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Rank = Annotated[int, typer.Option(min=0, help="Train an adapter of this rank on every matrix; 0: all weights.")]
Checkpointed = Annotated[bool, typer.Option("--checkpoint-activations", help="Compute each block again backward.")]


class Dtype(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"


@app.command()
def run(
    params: Annotated[Path | None, typer.Option(metavar="FILE", help="Make FILE the project's params.yaml.")] = None,
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="Stop after STAGE and what it needs.")] = None,
) -> None:
    """Bring every stage up to date; what has not changed is not done again."""
    from flows.local import environment
    from flows.supervise import GRACE
    from flows.supervise import run as run_supervised
    from pipeline.job import PARAMS_FILE
    from pipeline.params import load_params
    from pipeline.process import exit_on_signals
    from pipeline.workspace import adopt_params

    root = _root()
    if params is not None and (copy := adopt_params(root, params)) is not None:
        print(f"the params so far are in {copy.relative_to(root)}")
    load_params(root / PARAMS_FILE)
    exit_on_signals()
    flow = [sys.executable, "-m", "flows.recipe", *(["--until", until] if until else [])]
    # The flow, when it is stopped, first gives its stage the usual grace.
    raise typer.Exit(run_supervised(flow, cwd=root, env=environment(root), grace=3 * GRACE))


@app.command()
def study(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of a file infra/profiles/studies/NAME.yaml.")],
) -> None:
    """Compare variants of the recipe: run what is missing of each, then put the same held-out problems to all."""
    root = _root()
    from flows.study import run_study
    from pipeline.process import exit_on_signals

    exit_on_signals()
    raise typer.Exit(run_study(root, name))


@app.command()
def status() -> None:
    """Show each stage: fresh or stale, its last attempt and figures."""
    from rich.console import Console

    from flows.report import status_table
    from flows.status import freshness
    from pipeline.state import read_state

    root = _root()
    fresh = freshness(root)
    Console().print(status_table(root, fresh, {stage: read_state(root, stage) for stage in fresh}))


@app.command()
def report() -> None:
    """Write runs/report.html: recipe, models, curves, samples, costs and lineage on one page; print where it is."""
    from pipeline.report.page import write_report

    print(write_report(_root()))


@app.command()
def plan(
    again: Annotated[bool, typer.Option("--again", help="Measure also what was measured before.")] = False,
) -> None:
    """Measure every release on this machine; choose the cheapest that meets deployment.target. Exit status 3: none."""
    root = _root()
    from rich.console import Console

    from pipeline.planning.plan import make_plan
    from pipeline.planning.table import chosen_line, plan_table

    made = make_plan(root, again=again)
    Console().print(plan_table(made))
    print(chosen_line(made))


@app.command("plan-memory")
def plan_memory(
    params: Annotated[Path, typer.Option(metavar="FILE", help="A params file.")] = Path("params.yaml"),
    config: Annotated[
        list[str] | None,
        typer.Option(metavar="[STUDENT=]FILE", help="config.json of a checkpoint that is not here, or a student's."),
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Of the longest prompt.")] = 512,
    device_memory: Annotated[float | None, typer.Option(min=0, metavar="GIB", help="Mark what fits.")] = None,
    as_json: Json = False,
) -> None:
    """Compute the memory of one rank in each training stage. Exit status 3: a stage exceeds --device-memory."""
    from pipeline.errors import GateFailedError
    from pipeline.memory.plan import plan_memory as plan_stages
    from pipeline.memory.table import fits, memory_table
    from pipeline.params import load_params

    named = [one.rpartition("=") for one in config or []]
    configs = {name or "base": Path(file) for name, _, file in named}
    plans = plan_stages(load_params(params), configs, prompt_tokens)
    if as_json:
        print(json.dumps([plan.to_json() for plan in plans]))
    else:
        from rich.console import Console

        Console().print(memory_table(plans, device_memory))
    if device_memory is not None and (over := [plan.stage for plan in plans if not fits(plan, device_memory)]):
        raise GateFailedError(f"more than {device_memory:g} GiB: {', '.join(over)}")


@app.command()
def models() -> None:
    """List every evaluated model: how good, how large, how fast."""
    from rich.console import Console

    from flows.models import models_table

    Console().print(models_table(_root()))


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help='For instance "47+85=?".')],
    model: Annotated[Path | None, typer.Option(metavar="DIR", help="A model folder.")] = None,
) -> None:
    """Put a question to a model: the one that is served here, else the recipe's last one."""
    root = _root()
    from rich.console import Console
    from rich.text import Text

    from pipeline.ask import answer
    from pipeline.job import PARAMS_FILE
    from pipeline.params import load_params

    completion, who = answer(question, root, load_params(root / PARAMS_FILE), model)
    print(f"{who}:", file=sys.stderr)
    console = Console(highlight=False)
    console.print(Text(completion.thinking, style="dim"))
    console.print(Text(completion.answer if completion.well_formed else "(no well-formed answer)", style="bold"))


@app.command()
def serve(
    model: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A model folder; without it the champion, wherever it moves.")
    ] = None,
    host: Annotated[str, typer.Option(help="Any but this machine's own takes API keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    api_keys: Annotated[Path | None, typer.Option(metavar="FILE", help="One a line; or R1FLOW_API_KEYS.")] = None,
) -> None:
    """Serve a model by OpenAI's API; a page to try it is at /. Limits: machine.serving of a project's params.yaml."""
    from pipeline.job import PARAMS_FILE
    from pipeline.params import Machine, load_params
    from pipeline.serving.server import Listening, serve_champion
    from pipeline.serving.server import serve as serve_model

    if model is None:
        root = _root()
        serve_champion(root, Listening(host, port, api_keys, root), load_params(root / PARAMS_FILE), _announce())
        return
    found = Path.cwd() / PARAMS_FILE  # a release is served in a project or out of it
    machine = load_params(found).machine if found.is_file() else Machine()
    serve_model(model, Listening(host, port, api_keys, found.parent if found.is_file() else None), machine)


class Target(StrEnum):
    vllm = "vllm"
    llama_cpp = "llama.cpp"
    kserve = "kserve"


@app.command()
def export(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder that is written to.")],
    to: Annotated[Target, typer.Option("--to", help="What is to serve it.")],
    release: Annotated[str | None, typer.Option(metavar="NAME", help="Without it the recipe's final model.")] = None,
    storage: Annotated[
        str | None, typer.Option(metavar="URI", help="kserve: where the cluster finds the files, s3://… or pvc://….")
    ] = None,
) -> None:
    """Write what serves a release elsewhere: a command, a conversion or a manifest. Nothing is copied."""
    from pipeline.export.targets import export as write

    for file in write(_root(), out, to.value, release, storage):
        print(file)


Why = Annotated[str, typer.Option("--why", metavar="TEXT", help="For the record.")]


@app.command()
def promote(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A registered model, as MLflow calls it.")],
    version: Annotated[int, typer.Argument(metavar="VERSION")],
    why: Why = "by hand",
) -> None:
    """Make a version the champion, as moving the alias in MLflow does. Exit status 3: a server here refused it."""
    _show_entry(_hand().promote(name, version, why), version)


@app.command()
def rollback(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="The one that `r1flow serve` follows.")] = None,
    why: Why = "by hand",
) -> None:
    """Make the champion before this one the champion again."""
    from pipeline.promotion.hand import champion_model

    hand = _hand()
    entry = hand.roll_back(name or champion_model(hand.params), why)
    _show_entry(entry, entry.event.after.version)


@app.command()
def history(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Of one registered model only.")] = None,
) -> None:
    """Who was champion when, and what was refused: the ledger, after a look at whether it is whole."""
    from rich.console import Console

    from pipeline.promotion.table import history_tables

    ledger = _hand().ledger()
    ledger.verify()
    entries = [entry for entry in ledger.entries() if name in (None, entry.event.model)]
    Console().print(*(history_tables(entries) if entries else [f"{ledger.place}: no entries yet"]))


def _hand() -> "Hand":
    from pipeline.job import PARAMS_FILE
    from pipeline.params import load_params
    from pipeline.promotion.hand import Hand

    root = _root()
    return Hand(root, load_params(root / PARAMS_FILE), _announce())


def _show_entry(entry: "Entry", wanted: int) -> None:
    """What became of a version. Raises GateFailedError where it did not come to be the champion."""
    from rich.console import Console

    from pipeline.errors import GateFailedError
    from pipeline.promotion.table import history_tables

    Console().print(*history_tables([entry]))
    if entry.event.kind == "refused" or entry.event.after.version != wanted:
        raise GateFailedError(f"{entry.event.model} version {wanted}: refused: {entry.event.why}")


def _announce() -> "Announce":
    """Whoever is to hear of a new champion beside the ledger: Prefect, where it has a server."""

    def announce(entry: "Entry") -> None:
        if "PREFECT_API_URL" in os.environ:
            from flows.promotion import emit

            emit(entry)

    return announce


@app.command()
def doctor(
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="A stage's newest run, or an MLflow run id.")] = None,
) -> None:
    """Look at versions, cores, GPU, folders and services; with RUN at how that run fared. Exit status 1: not well."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from pipeline.doctor import examine

    root = _root()
    if run is not None:
        from pipeline.checkup import check_up

        found = check_up(root, run)
        Console(highlight=False).print(found.summary, *([found.table()] if found.findings else []))
        raise typer.Exit(1 if found.findings else 0)
    checks = list(examine(root))
    table = Table("", "what", "found")
    for check in checks:
        mark = Text("ok", style="green") if check.ok else Text("broken", style="red")
        table.add_row(mark, check.name, Text(check.detail))
    Console().print(table)
    raise typer.Exit(0 if all(check.ok for check in checks) else 1)


@app.command()
def digest(
    what: Annotated[str, typer.Argument(metavar="PATH", help="A checkpoint's folder, or files of data as params say.")],
) -> None:
    """Print the digest that pins a checkpoint or a data source in params.yaml."""
    from pipeline.data.pins import path_digest
    from pipeline.files import digest as content_digest
    from pipeline.model.remote import checkpoint_digest

    path = Path(what)
    if (path / "config.json").is_file():
        print(checkpoint_digest(path))
    elif path.is_dir():
        print(content_digest(path))
    else:
        print(path_digest(what, Path.cwd()))


@store.command("list")
def store_list() -> None:
    """Show what lies in the store: releases, and the checkpoints of each piece of work."""
    from rich.console import Console

    from pipeline.store.collect import holdings
    from pipeline.store.table import holdings_table

    Console().print(holdings_table(holdings(_store())))


@store.command("collect")
def store_collect(
    delete: Annotated[bool, typer.Option("--delete", help="Remove it. Without this it is only listed.")] = False,
    unused_days: Annotated[
        float, typer.Option(min=1, help="After which checkpoints whose work has not gone on can go.")
    ] = 30.0,
) -> None:
    """List or remove what nothing references, of what is older than a day."""
    from pipeline.store.collect import remove, unreferenced

    place = _store()
    found = unreferenced(place, unused_days=unused_days)
    for entry in remove(place, found) if delete else found:
        print(f"{entry.size:>14,} {entry.key}")
    size = sum(entry.size for entry in found)
    print(f"{len(found)} objects, {size:,} bytes{'' if delete or not found else ': --delete removes them'}")


def _store() -> "Store":
    from pipeline.errors import InputError
    from pipeline.job import PARAMS_FILE
    from pipeline.params import load_params
    from pipeline.store import artifact_store

    root = _root()
    place = load_params(root / PARAMS_FILE).machine.store
    if place is None:
        raise InputError(f"{root / PARAMS_FILE}: machine.store: null: names no artifact store")
    return artifact_store(place, root)


@bench.command("sft")
def bench_sft(
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
    _show(figures, as_json)


@bench.command("grpo")
def bench_grpo(
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
    _show(measure(model, *size, rank=rank, checkpoint_activations=checkpoint_activations), as_json)


@bench.command("generate")
def bench_generate(
    model: Annotated[Path, typer.Option(metavar="DIR", help="A checkpoint with its tokenizer.")],
    prompts: Annotated[int, typer.Option(min=1)] = 32,
    group: Annotated[int, typer.Option(min=1, help="Completions per prompt.")] = 8,
    new_tokens: Annotated[int, typer.Option(min=1, help="At most, per completion.")] = 64,
    dtype: Dtype = Dtype.float32,
    as_json: Json = False,
) -> None:
    """Generation of groups of completions: tokens and samples a second."""
    from pipeline.bench.generation import run as measure

    _show(measure(model, prompts, group, new_tokens, dtype.value), as_json)


@bench.command("curation")
def bench_curation(rows: int = 100_000, as_json: Json = False) -> None:
    """Curation of generated rows: seconds and peak memory."""
    from pipeline.bench.curation import run as measure

    _show(measure(rows), as_json)


@bench.command("pruning")
def bench_pruning(
    experts: Annotated[list[int], typer.Option(help="That each layer keeps; several times for several points.")],
    as_json: Json = False,
) -> None:
    """Experts cut out of the project's teacher: how right it is left, without and with training after the cut."""
    from pipeline.bench.pruning import run as measure

    _show(measure(_root(), experts), as_json)


def _show(figures: Mapping[str, float | str], as_json: bool) -> None:
    if as_json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:20} {value}")


def _root() -> Path:
    from pipeline.job import project_root

    return project_root(Path.cwd())


def main() -> None:
    spin_briefly()
    keep_freed_memory()
    try:
        app()
    except EXPECTED as error:
        print(error, file=sys.stderr)
        sys.exit(exit_code(error))

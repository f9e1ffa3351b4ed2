"""distillation: small models learn from what the large one wrote (DeepSeek-R1, R1-Distill-*). One stage per student.

As R1's, a student is only fine-tuned on the set. With `on_policy` it then writes for itself, and the teacher says for
every token what it would have written: that is the model which wrote the set, so that students wait for no later one.
"""

from pathlib import Path

from pipeline.files import atomic_folder
from pipeline.gkd.loop import train as train_on_policy
from pipeline.gkd.teacher import load_teacher
from pipeline.gkd.texts import student_engine
from pipeline.job import Job, Log
from pipeline.model.checkpoint import save_model
from pipeline.model.device import stage_device
from pipeline.model.tokenizer import save_tokenizer
from pipeline.params import Distributed, OnPolicy, Params
from pipeline.records import Problem, Trace, read_table
from pipeline.training.batches import Example
from pipeline.training.curated import read_curated
from pipeline.training.engine import acting_copy
from pipeline.training.examples import worked_examples
from pipeline.training.loop import train
from pipeline.training.memory import prepare
from pipeline.training.pretraining import Start, obtain


def run(params: Params, job: Job) -> dict[str, float]:
    student = params.distillation.students[job.member]
    teacher = job.input("reasoning_rl", "model")
    problems = read_table(job.input("curation", "problems.parquet"), Problem)
    traces = read_table(job.input("rejection_sampling", "traces.parquet"), Trace)
    start = obtain(
        student.base,
        seed=params.seed,
        held_out=params.held_out,
        curated=lambda: read_curated(
            job.input("curation", "problems.parquet"), job.input("curation", "traces.parquet")
        ),
        scratch=job.scratch / "base",
        log=_prefixed(job.log, "base"),
        meter=job.meter.part("base"),
        title=f"{job.stage}: pre-training",
        distributed=params.distributed,
    )
    examples = worked_examples(start.tokenizer, problems, traces, start.model.config.max_position_embeddings)
    start.model.to(stage_device())  # what was split among ranks has come back on the CPU, here and below
    prepare(start.model, student.train, params.seed)
    summary = train(
        start.model,
        examples,
        student.train,
        seed=params.seed,
        scratch=job.scratch / "train",
        log=job.log,
        meter=job.meter,
        title=f"{job.stage}: SFT",
        distributed=params.distributed,
    )
    figures: dict[str, float] = {"loss": summary.loss, "tokens": summary.tokens, "examples": len(examples)}
    if student.on_policy is not None:
        figures |= _on_policy(start, teacher, examples, student.on_policy, params.distributed, params.seed, job)
    with atomic_folder(job.output("model")) as folder:
        save_model(start.model, folder)
        save_tokenizer(start.tokenizer, folder)
    return {
        **figures,
        **{f"base_{name}": value for name, value in start.figures.items()},
        **start.model.size().figures(),
    }


def _on_policy(
    start: Start,
    folder: Path,
    examples: list[Example],
    options: OnPolicy,
    distributed: Distributed,
    seed: int,
    job: Job,
) -> dict[str, float]:
    start.model.to(stage_device()).checkpoint_activations = options.checkpoint_activations
    acting = acting_copy(start.model, distributed)
    teacher = load_teacher(folder, start.tokenizer, job.stage, bfloat16=options.dtype == "bfloat16")
    summary = train_on_policy(
        start.model,
        examples,
        options,
        teacher=teacher,
        generate=student_engine(acting, start.tokenizer, examples, options, seed),
        vocabulary=max(start.tokenizer.get_vocab().values()) + 1,
        seed=seed,
        scratch=job.scratch / "on_policy",
        log=_prefixed(job.log, "on_policy"),
        meter=job.meter.part("on_policy"),
        title=f"{job.stage}: on policy",
        distributed=distributed,
        acting=acting,
    )
    return {"divergence": summary.loss, "on_policy_tokens": summary.tokens}


def _prefixed(log: Log, part: str) -> Log:
    """The log of a part of the work whose figures are not to make one curve with those of the fine-tuning."""
    return lambda figures, step: log({f"{part}/{name}": value for name, value in figures.items()}, step)

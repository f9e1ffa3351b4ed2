"""reasoning_rl: reinforcement learning on rewards that can be checked (DeepSeek-R1, Dev2; from the base: R1-Zero)."""

from dataclasses import asdict

from pipeline.files import atomic_folder
from pipeline.job import Job
from pipeline.model.checkpoint import load_model, save_model
from pipeline.model.device import stage_device
from pipeline.model.tokenizer import load_tokenizer, save_tokenizer
from pipeline.params import Params
from pipeline.records import Problem, read_table
from pipeline.rewards.score import Scorer
from pipeline.rl.grpo import train
from pipeline.rl.health import Health
from pipeline.rl.rollout import Questions, checkable_questions, rollout_engine
from pipeline.rl.scoring import rule_rewards
from pipeline.training.engine import acting_copy
from pipeline.training.memory import prepare


def run(params: Params, job: Job) -> dict[str, float]:
    options = params.reasoning_rl
    start = {"cold_start": job.input("cold_start", "model"), "base": job.input("base", "model")}[options.start]
    policy = prepare(load_model(start, device=stage_device()), options.train, params.seed)
    tokenizer = load_tokenizer(start)
    asked = checkable_questions(tokenizer, read_table(job.input("curation", "problems.parquet"), Problem))
    scorer = Scorer(options.rewards)
    scorer.require({question.problem.verifier for question in asked})
    questions = Questions(asked, params.seed)
    acting = acting_copy(policy, params.distributed)
    summary = train(
        policy,
        questions,
        options.train,
        generate=rollout_engine(acting, tokenizer, questions, options.train, params.seed),
        judge=rule_rewards(scorer, options.train.max_new_tokens),
        health=Health(options.health),
        seed=params.seed,
        scratch=job.scratch,
        log=job.log,
        table=job.table,
        meter=job.meter,
        title="reasoning_rl: GRPO",
        distributed=params.distributed,
        acting=acting,
    )
    with atomic_folder(job.output("model")) as folder:
        save_model(policy, folder)
        save_tokenizer(tokenizer, folder)
    return {**asdict(summary), **policy.size().figures()}

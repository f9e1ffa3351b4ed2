"""general_rl: reinforcement learning on checkable and on general prompts (DeepSeek-R1, the second RL stage).

The general prompts and the preference reward come in late, and a monitor watches whether that reward is hacked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from pipeline.evaluation.intervals import mean_interval
from pipeline.files import atomic_folder
from pipeline.generation.requests import Completion
from pipeline.job import Job
from pipeline.model.checkpoint import load_model, save_model
from pipeline.model.device import stage_device
from pipeline.model.reward import load_reward
from pipeline.model.tokenizer import load_tokenizer, save_tokenizer
from pipeline.params import Params
from pipeline.preference.endpoint import Endpoint
from pipeline.records import Problem, read_table
from pipeline.rewards.score import Scorer
from pipeline.rl.general import GeneralRewards, MixedQuestions, Opinion, set_aside
from pipeline.rl.grpo import train
from pipeline.rl.health import Health
from pipeline.rl.judge import PairwiseJudge
from pipeline.rl.monitor import Monitor, Watched
from pipeline.rl.rollout import Question, Questions, checkable_questions, general_questions, rollout_engine
from pipeline.rl.scoring import rule_rewards
from pipeline.training.engine import acting_copy
from pipeline.training.memory import prepare
from pipeline.world import led


def run(params: Params, job: Job) -> dict[str, float]:
    options, limit = params.general_rl, params.general_rl.train.max_new_tokens
    start = job.input("general_sft", "model")
    policy = prepare(load_model(start, device=stage_device()), options.train, params.seed)
    tokenizer = load_tokenizer(start)

    def opinion(name: str) -> Opinion:
        folder = job.input("preference", name)
        reward, of = load_reward(folder, stage_device()), load_tokenizer(folder)

        def judge(pairs: Sequence[tuple[Question, Completion]]) -> Sequence[float]:
            return reward.scores(of, [(question.problem.prompt, completion.text) for question, completion in pairs])

        return judge

    preference, witness = opinion("model"), opinion("witness")
    problems = read_table(job.input("curation", "problems.parquet"), Problem)
    watched, asked = set_aside(checkable_questions(tokenizer, problems), options.monitor.problems)
    looked, general = set_aside(general_questions(tokenizer, problems), options.monitor.prompts)
    scorer = Scorer(options.rewards)
    scorer.require({question.problem.verifier for question in (*watched, *asked)})
    questions = MixedQuestions(
        Questions(asked, params.seed), Questions(general, params.seed), options.preference, options.first_general_step
    )
    acting = acting_copy(policy, params.distributed)
    generate = rollout_engine(acting, tokenizer, questions, options.train, params.seed)
    opinions = {"preference": (options.preference.weight, preference)}
    judge = None
    if options.judge is not None and job.leads:  # who alone asks for rewards
        judge = PairwiseJudge(Endpoint(options.judge, job.runs / "judge.jsonl", job.key), options.judge, params.seed)
        judge.require(general)
        opinions["judge"] = (options.judge.weight, judge)

    def log(figures: Mapping[str, float], step: int) -> None:
        job.log(figures if judge is None else {**figures, **judge.figures()}, step)

    summary = train(
        policy,
        questions,
        options.train,
        generate=generate,
        judge=GeneralRewards(options.rewards, opinions, limit),
        health=Health(options.health),
        monitor=Monitor(
            Watched(watched, looked, led(rule_rewards(scorer, limit)), led(preference), led(witness)),
            options.monitor,
            options.train,
            options.first_general_step,
            generate,
            lambda values: mean_interval(values, params.seed),
        ),
        seed=params.seed,
        scratch=job.scratch,
        log=log,
        table=job.table,
        meter=job.meter,
        title="general_rl: GRPO",
        distributed=params.distributed,
        acting=acting,
    )
    with atomic_folder(job.output("model")) as folder:
        save_model(policy, folder)
        save_tokenizer(tokenizer, folder)
    return {**asdict(summary), **policy.size().figures()}

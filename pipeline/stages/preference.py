"""preference: a reward model from pairs of a better and a worse answer (DeepSeek-R1, helpfulness), and its witness.

The witness is a model like it on the other half of the pairs, from another seed. Nobody optimises against it:
general_rl sees by it whether what pleases the preference model pleases another one, too.
"""

from collections.abc import Mapping

from pipeline.errors import GateFailedError
from pipeline.evaluation.intervals import Interval, mean_interval
from pipeline.files import atomic_folder
from pipeline.job import Job
from pipeline.model.checkpoint import load_model
from pipeline.model.checkpoint_files import read_config
from pipeline.model.config import ModelConfig
from pipeline.model.device import lent, stage_device
from pipeline.model.reward import RewardModel, save_reward
from pipeline.model.tokenizer import load_tokenizer, save_tokenizer
from pipeline.params import Params
from pipeline.preference.measures import Measured, agreement, measure
from pipeline.preference.pairs import Pair, split_pairs
from pipeline.preference.training import train_reward
from pipeline.records import PreferencePair, read_table
from pipeline.training.memory import prepare


def run(params: Params, job: Job) -> dict[str, float]:
    options = params.preference
    start = job.input("general_sft", "model")
    tokenizer = load_tokenizer(start)
    table = read_table(job.input("curation", "pairs.parquet"), PreferencePair)
    room = ModelConfig.from_hf(read_config(start)).max_position_embeddings
    split = split_pairs(tokenizer, table, params.seed, options.held_out, room)

    def trained(name: str, pairs: list[Pair], seed: int) -> RewardModel:
        model = RewardModel.on(load_model(start, device=stage_device()), options.judges, seed)
        prepare(model.decoder, options.train, seed)
        log = job.log if name == "model" else lambda figures, step: job.log(_named(name, figures), step)
        train_reward(
            model,
            pairs,
            options.train,
            seed=seed,
            scratch=job.scratch / name,
            log=log,
            title=f"preference: {name}",
            meter=job.meter.part(name),
            distributed=params.distributed,
        )
        return model

    models = {
        "model": trained("model", split.first, params.seed),
        "witness": trained("witness", split.second, params.seed + 1),
    }
    measured, witness = (measure(lent(model, stage_device()), split.held_out) for model in models.values())
    accuracy = mean_interval(measured.right.tolist(), params.seed)
    if accuracy.low <= options.min_accuracy:
        raise GateFailedError(
            f"preference: accuracy {accuracy} on {len(split.held_out)} held-out pairs: its lower bound must be above "
            f"min_accuracy {options.min_accuracy:g}. To try: more pairs, more `train.steps`"
        )
    for name, model in models.items():
        with atomic_folder(job.output(name)) as folder:
            save_reward(model, tokenizer, folder)
            save_tokenizer(tokenizer, folder)
    return {
        **_bounds("accuracy", accuracy),
        **_where_shorter(measured, params.seed),
        "length_correlation": measured.length_correlation(),
        "witness_accuracy": float(witness.right.mean()),
        "agreement": agreement(measured, witness),
        "held_out_pairs": len(split.held_out),
        "pairs": len(split.first),
        **models["model"].decoder.size().figures(),
    }


def _where_shorter(measured: Measured, seed: int) -> dict[str, float]:
    """Accuracy where the better answer is the shorter one: a model that goes by length has none there."""
    values = measured.right[measured.shorter].tolist()
    return _bounds("accuracy_chosen_shorter", mean_interval(values, seed)) if values else {}


def _named(model: str, figures: Mapping[str, float]) -> dict[str, float]:
    return {f"{model}/{name}": value for name, value in figures.items()}


def _bounds(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}

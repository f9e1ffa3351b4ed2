"""Options that save memory: what they save, and that they change nothing else."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.bench.peak import peak_bytes
from pipeline.gkd.loop import Objective as StudentObjective
from pipeline.gkd.loop import train_step as student_step
from pipeline.gkd.teacher import Teacher
from pipeline.model.adapter import adapted_weights, learning
from pipeline.model.config import ModelConfig
from pipeline.model.decoder import Decoder
from pipeline.model.reward import RewardModel
from pipeline.params import GRPO, OnPolicy, Optimisation, PairTraining, Training
from pipeline.preference.pairs import Pair
from pipeline.preference.training import PairObjective
from pipeline.preference.training import train_step as pair_step
from pipeline.rl.learner import Learner
from pipeline.rl.trajectories import Trajectory
from pipeline.training.batches import Example
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.engine import TorchEngine
from pipeline.training.loop import Objective, train, train_step
from pipeline.training.memory import prepare

VOCABULARY, LENGTH, COUNT = 20, 32, 64
MODEL = {
    "model_type": "deepseek_v3", "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64,
    "moe_intermediate_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 2,
    "n_shared_experts": 1, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    "routed_scaling_factor": 1.0, "norm_topk_prob": True, "first_k_dense_replace": 1, "q_lora_rank": None,
    "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 16, "max_position_embeddings": 64,
    "tie_word_embeddings": True, "initializer_range": 0.1,
}  # fmt: skip
ADAPTER = {"rank": 4, "alpha": 8.0, "targets": ["q_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "experts"]}
COMMON = {"steps": 4, "learning_rate": 0.01, "warmup": 0.0, "checkpoint_every": 2}


def decoder() -> Decoder:
    model = Decoder(ModelConfig.from_hf(MODEL))
    model.init_weights(seed=0)
    return model


def texts(count: int = COUNT) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(1, VOCABULARY, LENGTH) for _ in range(count)]


def examples() -> list[Example]:
    return [Example(text, np.ones(LENGTH, dtype=np.bool_)) for text in texts()]


def trajectories(*, replay: bool = False) -> list[Trajectory]:
    rng = np.random.default_rng(1)
    return [
        Trajectory(
            tokens=text,
            prompt=4,
            advantage=float(rng.normal()),
            engine=np.full(LENGTH - 4, -3.0, dtype=np.float32),
            experts=rng.integers(0, 8, (LENGTH - 1, 3, 2)).astype(np.int16) if replay else None,
        )
        for text in texts()
    ]


Step = Callable[[], object]


def supervised(options: Training) -> tuple[Step, Decoder]:
    model = prepare(decoder(), options, seed=0)
    engine = TorchEngine(Objective(model), options)
    return lambda: train_step(engine, model, examples(), options, step=0), model


def reinforced(options: GRPO) -> tuple[Step, Decoder]:
    model = prepare(decoder(), options, seed=0)
    learner = Learner(model, options, seed=0)
    return lambda: learner.update(trajectories(replay=options.replay_experts), 0, lambda figures: True), model


def compared(options: PairTraining) -> tuple[Step, Decoder]:
    reward = RewardModel.on(decoder(), "answer", seed=0)
    prepare(reward.decoder, options, seed=0)
    engine = TorchEngine(PairObjective(reward), options)
    pairs = [Pair(*two) for two in zip(texts()[::2], texts()[1::2], strict=True)]
    return lambda: pair_step(engine, reward, pairs, options, step=0), reward.decoder


def taught(options: OnPolicy) -> tuple[Step, Decoder]:
    model = prepare(decoder(), options, seed=0)
    engine = TorchEngine(StudentObjective(model, options, VOCABULARY), options)
    teacher = Teacher(decoder(), bfloat16=False)
    return lambda: student_step(engine, model, teacher, examples(), options, step=0), model


LOOPS: dict[str, tuple[type[Optimisation], dict[str, object], Callable[..., tuple[Step, Decoder]]]] = {
    "supervised": (Training, {"tokens_per_step": COUNT * LENGTH}, supervised),
    "reinforced": (GRPO, {"prompts": 8, "group": 8, "max_new_tokens": LENGTH}, reinforced),
    "replayed": (
        GRPO,
        {"prompts": 8, "group": 8, "max_new_tokens": LENGTH, "replay_experts": True, "minibatches": 2},
        reinforced,
    ),
    "compared": (PairTraining, {"pairs_per_step": COUNT // 2}, compared),
    "taught": (OnPolicy, {"prompts": COUNT, "max_new_tokens": LENGTH, "lambda": 0.0}, taught),
}


def step_of(loop: str, **changes: object) -> tuple[Step, Decoder]:
    """One step of a loop, and the model that learns by it."""
    kind, own, make = LOOPS[loop]
    return make(kind.model_validate({**COMMON, **own, **changes}))


@pytest.mark.parametrize("loop", LOOPS)
def test_what_is_held_at_most_follows_micro_batch_tokens(loop: str) -> None:
    """Moments are there after the first step: what is measured are gradients and activations."""
    peaks = []
    for micro_batch_tokens in (COUNT * LENGTH, COUNT * LENGTH // 8):
        step, _ = step_of(loop, micro_batch_tokens=micro_batch_tokens)
        step()
        peaks.append(peak_bytes(step))
    assert peaks[1] < peaks[0] / 3


@pytest.mark.parametrize("adapter", [None, ADAPTER], ids=["whole", "adapter"])
@pytest.mark.parametrize("loop", LOOPS)
def test_checkpointed_activations_give_the_same_bits_and_take_less(loop: str, adapter: object) -> None:
    kept, once = step_of(loop, adapter=adapter)
    again, twice = step_of(loop, adapter=adapter, checkpoint_activations=True)
    assert twice.checkpoint_activations
    assert kept() == again()  # figures: losses, norms, loads of experts
    for (name, weight), other in zip(once.state_dict().items(), twice.state_dict().values(), strict=True):
        assert torch.equal(weight, other), name
    assert peak_bytes(again) < 0.6 * peak_bytes(kept)


def test_an_adapter_has_the_only_gradients_and_moments() -> None:
    whole, model = step_of("supervised", micro_batch_tokens=LENGTH)
    changed, adapted = step_of("supervised", micro_batch_tokens=LENGTH, adapter={**ADAPTER, "rank": 1})
    frozen = {name: weight.clone() for name, weight in model.state_dict().items()}
    most = peak_bytes(changed)
    assert most < 0.5 * peak_bytes(whole)
    after = adapted.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in frozen.items()), "routers' biases too"
    assert all(change.b.any() for _, _, change in adapted_weights(adapted))


def test_training_an_adapter_that_is_killed_and_resumed_ends_in_the_same_bits(tmp_path: Path) -> None:
    options = Training.model_validate({**COMMON, "tokens_per_step": 500, "adapter": ADAPTER})

    def run(folder: Path, kill_at: int | None = None) -> Decoder:
        model = prepare(decoder(), options, seed=0)

        def log(figures: object, step: int) -> None:
            if step == kill_at:
                raise KeyboardInterrupt

        train(model, examples(), options, seed=0, scratch=folder, log=log, title="test")
        return model

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", kill_at=3)
    resumed = run(tmp_path / "killed")
    for (name, weight), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(weight, other), name
    newest = Checkpoints(tmp_path / "whole").newest()
    assert newest is not None
    saved = {name for name in newest.state["weights"] if not name.endswith("e_score_correction_bias")}
    assert saved == {f"decoder.{name}" for name in learning(whole)}

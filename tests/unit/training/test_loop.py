"""The loop on a decoder of a few thousand parameters."""

import copy
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.curves import Curves
from pipeline.errors import RunStoppedError
from pipeline.model import native
from pipeline.model.attention import PackedSequences
from pipeline.model.config import ModelConfig
from pipeline.model.decoder import Decoder
from pipeline.model.experts import balance_loss
from pipeline.params import Training
from pipeline.training.batches import Example, Steps
from pipeline.training.engine import TorchEngine
from pipeline.training.loop import Objective, Summary, train, train_step

VOCABULARY = 20
SPARSE = {
    "model_type": "deepseek_v3", "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32,
    "moe_intermediate_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 2,
    "n_shared_experts": 1, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    "routed_scaling_factor": 1.0, "norm_topk_prob": True, "first_k_dense_replace": 1, "q_lora_rank": None,
    "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 8, "max_position_embeddings": 64,
    "tie_word_embeddings": True, "rms_norm_eps": 1e-6, "hidden_act": "silu", "initializer_range": 0.1,
    "rope_theta": 10000.0,
}  # fmt: skip
DENSE = {
    "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
    "tie_word_embeddings": False, "rms_norm_eps": 1e-6, "hidden_act": "silu", "initializer_range": 0.1,
    "rope_theta": 10000.0,
}  # fmt: skip


def decoder(config: Mapping = SPARSE) -> Decoder:
    model = Decoder(ModelConfig.from_hf(config))
    model.init_weights(seed=0)
    return model


def options(**changes: object) -> Training:
    return Training.model_validate(
        {"steps": 8, "tokens_per_step": 100, "learning_rate": 0.01, "checkpoint_every": 3, **changes}
    )


def examples(count: int = 40) -> list[Example]:
    """Counting up from a random start; the first tokens of each are a prompt."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        length = int(rng.integers(3, 12))
        tokens = (rng.integers(VOCABULARY) + np.arange(length)) % VOCABULARY
        made.append(Example(tokens, np.arange(length) >= rng.integers(0, length - 1)))
    return made


def run(folder: Path, model: Decoder, settings: Training, log=lambda figures, step: None) -> Summary:
    return train(model, examples(), settings, seed=0, scratch=folder, log=log, title="test")


def gradients(model: Decoder, items: list[Example], settings: Training) -> dict[str, torch.Tensor]:
    """Gradients of one step. The first moment after it is (1 − β₁) · gradient, as nothing is clipped."""
    model = copy.deepcopy(model)
    engine = TorchEngine(Objective(model), settings)
    train_step(engine, model, items, settings, step=0)
    return {
        name.removeprefix("decoder.").removesuffix(":exp_avg"): value / (1 - settings.beta1)
        for name, value in engine.state()["optimiser"].items()
        if name.endswith(":exp_avg")
    }


def written_out_loss(model: Decoder, items: list[Example]) -> torch.Tensor:
    """Mean over all counted predictions, one example at a time, plus the balance loss as a mean over examples."""
    nats, balance = torch.zeros(()), torch.zeros(())
    for item in items:
        tokens = torch.from_numpy(item.tokens)
        length = len(item) - 1
        output = model(tokens[:-1], torch.arange(length), PackedSequences([length]))
        logits = model.logits(output.hidden)
        losses = F.cross_entropy(logits, tokens[1:], reduction="none")
        nats = nats + losses[torch.from_numpy(item.counts[1:])].sum()
        balance = balance + balance_loss(output.routing, [length])
    predictions = sum(int(item.counts[1:].sum()) for item in items)
    return nats / predictions + 0.1 * balance / len(items)


@pytest.mark.parametrize("micro_batch_tokens", [1, 40, 16_384], ids=["one by one", "several", "at once"])
def test_a_step_is_the_written_out_formula_however_it_is_cut(micro_batch_tokens: int):
    model, items = decoder(), examples(12)
    settings = options(balance_loss=0.1, gradient_clip=1e9, micro_batch_tokens=micro_batch_tokens)
    ours = gradients(model, items, settings)
    loss = written_out_loss(model, items)
    reference = torch.autograd.grad(loss, list(model.parameters()))
    for (name, _), gradient in zip(model.named_parameters(), reference, strict=True):
        torch.testing.assert_close(ours[name], gradient, atol=1e-6, rtol=1e-5, msg=name)
    engine = TorchEngine(Objective(model), settings)
    figures = train_step(engine, model, items, settings, step=0)
    assert figures.loss + 0.1 * figures.balance_loss == pytest.approx(loss.item(), abs=1e-6)
    assert figures.predictions == sum(int(item.counts[1:].sum()) for item in items)


def bits(folder: Path, threads: int) -> tuple[Summary, list[torch.Tensor]]:
    model = decoder()
    torch.set_num_threads(threads)
    summary = run(folder, model, options(tokens_per_step=600))  # enough rows for every path that large batches take
    torch.set_num_threads(1)
    return summary, list(model.parameters())


def equal(first: tuple[Summary, list[torch.Tensor]], second: tuple[Summary, list[torch.Tensor]]) -> bool:
    return first[0] == second[0] and all(torch.equal(*pair) for pair in zip(first[1], second[1], strict=True))


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_inputs_give_the_same_bits(threads: int, tmp_path: Path):
    assert equal(bits(tmp_path / "a", threads), bits(tmp_path / "b", threads))


@pytest.mark.skipif(native.library() is None, reason="torch's own products depend on the number of threads")
def test_the_bits_do_not_depend_on_the_number_of_threads(tmp_path: Path):
    assert equal(bits(tmp_path / "a", 1), bits(tmp_path / "b", 2))


@pytest.mark.parametrize("kill", [1, 3, 4, 7])
def test_a_killed_run_ends_in_the_same_bits(kill: int, tmp_path: Path):
    curves = {name: Curves(tmp_path / name) for name in ("whole", "killed")}

    def log(figures: Mapping[str, float], step: int) -> None:
        curves["killed"].note(figures, step)
        if step == kill:
            raise KeyboardInterrupt

    whole, model, resumed = decoder(), decoder(), decoder()
    expected = run(tmp_path / "whole", whole, options(), curves["whole"].note)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", model, options(), log)
    trained: list[int] = []

    def log_again(figures: Mapping[str, float], step: int) -> None:
        curves["killed"].note(figures, step)
        trained.append(step)

    assert run(tmp_path / "killed", resumed, options(), log_again) == expected
    assert trained[0] == 3 * ((kill - 1) // 3) + 1  # from the last checkpoint on
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    for name, noted in curves.items():
        noted.write(tmp_path / f"{name}.csv")
    assert (tmp_path / "whole.csv").read_bytes() == (tmp_path / "killed.csv").read_bytes()


def test_a_finished_run_is_not_trained_again(tmp_path: Path):
    first = run(tmp_path, decoder(), options(steps=6))
    model = decoder()
    assert run(tmp_path, model, options(steps=6), lambda *_: pytest.fail("trained again")) == first


@pytest.mark.parametrize("config", [SPARSE, DENSE], ids=["sparse", "dense"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_learns_to_count(config: Mapping, dtype: str, tmp_path: Path):
    logged: list[Mapping[str, float]] = []
    settings = options(steps=60, dtype=dtype, checkpoint_every=100)
    summary = run(tmp_path, decoder(config), settings, lambda figures, step: logged.append(figures))
    assert logged[0]["loss"] == pytest.approx(math.log(VOCABULARY), rel=0.3)
    assert logged[-1]["loss"] < 0.5
    assert summary.steps == 60
    assert summary.tokens == sum(figures["tokens"] for figures in logged)


def test_the_routers_bias_moves_against_the_load(tmp_path: Path):
    model = decoder()
    settings = options(balance_rate=0.01)
    engine = TorchEngine(Objective(model), settings)
    train_step(engine, model, Steps(examples(), 100, 0)[0], settings, step=0)
    biases = [buffer for name, buffer in model.named_buffers() if "e_score_correction_bias" in name]
    assert all((bias.abs() <= 0.0101).all() and bias.abs().max() > 0.009 for bias in biases)


def test_a_loss_that_is_not_finite_stops_the_run_and_saves_nothing(tmp_path: Path):
    model = decoder()
    with torch.no_grad():
        model.embed_tokens.weight[3] = math.inf
    with pytest.raises(RunStoppedError, match=r"step 0: loss = nan: must be finite"):
        run(tmp_path, model, options(checkpoint_every=1))
    assert not list(tmp_path.iterdir())

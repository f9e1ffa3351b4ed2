"""A toy student on policy: one step against the written-out formula, the fall of the divergence, kill and resume."""

import copy
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from pipeline.errors import RunStoppedError
from pipeline.gkd.loop import Objective, train, train_step
from pipeline.gkd.teacher import Teacher
from pipeline.gkd.texts import student_engine
from pipeline.model.attention import PackedSequences
from pipeline.model.decoder import Decoder
from pipeline.model.experts import balance_loss
from pipeline.params import OnPolicy
from pipeline.training.engine import TorchEngine
from pipeline.training.loop import Summary

from .toys import DENSE, SPARSE, VOCABULARY, decoder, examples, options, tokenizer, weights

FIGURES = {
    "divergence", "balance_loss", "gradient_norm", "learning_rate", "imbalance", "tokens", "predictions", "length",
    "truncated", "tokens_per_s",
}  # fmt: skip


class Run:
    """A run of the loop, and what it logged."""

    def __init__(self, folder: Path, settings: OnPolicy, config: Mapping[str, object] = DENSE) -> None:
        self.folder, self.settings, self.model = folder, settings, decoder(config, seed=1)
        self.teacher = Teacher(decoder(SPARSE, seed=0), bfloat16=settings.dtype == "bfloat16")
        self.logged: list[tuple[int, Mapping[str, float]]] = []
        self.kill_at: int | None = None

    def log(self, figures: Mapping[str, float], step: int) -> None:
        if step == self.kill_at:
            raise KeyboardInterrupt
        self.logged.append((step, figures))

    def go(self) -> Summary:
        return train(
            self.model,
            examples(),
            self.settings,
            teacher=self.teacher,
            generate=student_engine(self.model, tokenizer(), examples(), self.settings, 0),
            vocabulary=VOCABULARY,
            seed=0,
            scratch=self.folder,
            log=self.log,
            title="test",
        )


def written_out_loss(student: Decoder, teacher: Decoder, settings: OnPolicy) -> torch.Tensor:
    """Forward KL per counted prediction, one example at a time, plus the balance loss as a mean over examples."""
    nats, balance, predictions = torch.zeros(()), torch.zeros(()), 0
    for item in examples():
        tokens, length = torch.from_numpy(item.tokens), len(item) - 1
        outputs = [m(tokens[:-1], torch.arange(length), PackedSequences([length])) for m in (student, teacher)]
        q, p = (
            model.logits(output.hidden)[torch.from_numpy(item.counts[1:])].softmax(1)
            for model, output in zip((student, teacher), outputs, strict=True)
        )
        nats = nats + (p * (p / q).log()).sum()
        balance = balance + (balance_loss(outputs[0].routing, [length]) if outputs[0].routing else 0.0)
        predictions += len(p)
    return nats / predictions + settings.balance_loss * balance / len(examples())


@pytest.mark.parametrize("config", [SPARSE, DENSE], ids=["sparse", "dense"])
@pytest.mark.parametrize("micro_batch_tokens", [1, 40, 8_192], ids=["one by one", "several", "at once"])
def test_a_step_is_the_written_out_formula_however_it_is_cut(
    config: Mapping[str, object], micro_batch_tokens: int
) -> None:
    settings = options(beta=0.0, balance_loss=0.1, gradient_clip=1e9, micro_batch_tokens=micro_batch_tokens)
    student, judge = decoder(config, seed=1), decoder(SPARSE, seed=0)
    reference = torch.autograd.grad(written_out_loss(student, judge, settings), list(student.parameters()))
    trained = copy.deepcopy(student)
    engine = TorchEngine(Objective(trained, settings, VOCABULARY), settings)
    train_step(engine, trained, Teacher(judge, bfloat16=False), examples(), settings, step=0)
    # The first moment after one step is (1 − β₁) · gradient, as nothing is clipped.
    moments = engine.state()["optimiser"]
    for (name, _), gradient in zip(student.named_parameters(), reference, strict=True):
        ours = moments[f"decoder.{name}:exp_avg"] / (1 - settings.beta1)
        torch.testing.assert_close(ours, gradient, atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_on_policy_the_student_comes_near_to_its_teacher(beta: float, dtype: str, tmp_path: Path) -> None:
    run = Run(tmp_path, options(steps=60, prompts=16, beta=beta, dtype=dtype, checkpoint_every=100, **{"lambda": 1.0}))
    summary = run.go()
    first, last = (run.logged[index][1] for index in (0, -1))
    assert set(first) == FIGURES
    assert last["divergence"] < 0.35 * first["divergence"]
    assert summary.loss < 0.5 * first["divergence"]
    assert summary.tokens == sum(figures["tokens"] for _, figures in run.logged)


def test_a_student_that_is_the_teacher_has_nothing_to_learn(tmp_path: Path) -> None:
    run = Run(tmp_path, options(steps=1, beta=0.5, balance_loss=0.0), SPARSE)
    run.model = decoder(SPARSE, seed=0)
    run.go()
    assert run.logged[0][1]["divergence"] == pytest.approx(0, abs=1e-6)
    assert run.logged[0][1]["gradient_norm"] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("config", [SPARSE, DENSE], ids=["sparse", "dense"])
@pytest.mark.parametrize("kill", [1, 3, 5])
def test_a_killed_run_ends_in_the_same_bits(kill: int, config: Mapping[str, object], tmp_path: Path) -> None:
    whole, killed = Run(tmp_path / "whole", options(), config), Run(tmp_path / "killed", options(), config)
    expected = whole.go()
    killed.kill_at = kill
    with pytest.raises(KeyboardInterrupt):
        killed.go()
    resumed = Run(tmp_path / "killed", options(), config)
    assert resumed.go() == expected
    assert resumed.logged[0][0] == 2 * ((kill - 1) // 2) + 1  # from the last checkpoint on
    for name, value in weights(whole.model).items():
        assert torch.equal(value, weights(resumed.model)[name]), name


def test_rows_beyond_the_vocabulary_have_no_part(tmp_path: Path) -> None:
    padded = Run(tmp_path / "padded", options(steps=1, **{"lambda": 0.0}))
    padded.model = decoder(DENSE, seed=1, vocab_size=VOCABULARY + 4)
    plain = Run(tmp_path / "plain", options(steps=1, **{"lambda": 0.0}))
    with torch.no_grad():
        state = weights(padded.model)
        for name, value in weights(plain.model).items():
            value.copy_(state[name][:VOCABULARY] if name == "embed_tokens.weight" else state[name])
    padded.go(), plain.go()
    assert padded.logged[0][1]["divergence"] == pytest.approx(plain.logged[0][1]["divergence"], rel=1e-5)


def test_a_divergence_that_is_not_finite_stops_the_run_and_saves_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path, options(checkpoint_every=1, **{"lambda": 0.0}))
    with torch.no_grad():
        run.model.norm.weight[3] = float("inf")
    with pytest.raises(RunStoppedError, match="step 0: loss = nan: must be finite"):
        run.go()
    assert not list(tmp_path.iterdir())

"""A decoder of a few thousand parameters, questions, an engine without cleverness, and a scorer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from pipeline.generation.requests import Completion, Request
from pipeline.model.attention import PackedSequences
from pipeline.model.config import ModelConfig
from pipeline.model.decoder import Decoder
from pipeline.params import GRPO
from pipeline.records import Problem
from pipeline.rl.rollout import Generate, Question
from pipeline.rl.trajectories import Trajectory

VOCABULARY = 12
END = 0
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


def grpo(loss: Mapping[str, object] | None = None, **changes: object) -> GRPO:
    return GRPO.model_validate(
        {
            "steps": 6, "prompts": 4, "group": 3, "max_new_tokens": 5, "learning_rate": 0.01, "warmup": 0.0,
            "checkpoint_every": 2, "loss": dict(loss or {}), **changes,
        }
    )  # fmt: skip


def question(number: int) -> Question:
    problem = Problem(f"{number:04}", "toy", "toy", f"prompt {number}", "gold", "exact", "en", None, "train")
    return Question(problem, tuple(1 + (number + offset) % (VOCABULARY - 1) for offset in range(2 + number % 3)))


def plain_engine(model: Decoder, seed: int = 0, noise: float = 0.0) -> Generate:
    """Samples by one full forward pass per token; `noise` is added to the log-probabilities it tells."""

    @torch.no_grad()
    def generate(requests: Sequence[Request]) -> list[Completion]:
        samples = [
            Sample(request, place, number, np.random.default_rng([seed, *request.identity.encode(), number]))
            for place, request in enumerate(requests)
            for number in reversed(range(request.samples))
        ]
        while live := [sample for sample in samples if not sample.finished]:
            texts = [[*sample.request.prompt, *sample.tokens] for sample in live]
            lengths = [len(text) for text in texts]
            positions = torch.cat([torch.arange(length) for length in lengths])
            output = model(
                torch.tensor([token for text in texts for token in text]), positions, PackedSequences(lengths)
            )
            logits = model.logits(output.hidden[torch.tensor(lengths).cumsum(0) - 1]).double()
            for sample, row in zip(live, logits, strict=True):
                sample.draw((row / sample.request.sampling.temperature).log_softmax(0).numpy(), noise)
        return [sample.completion() for sample in samples]

    return generate


@dataclass
class Sample:
    """A completion that is being written."""

    request: Request
    place: int
    number: int
    rng: np.random.Generator
    tokens: list[int] = field(default_factory=list)
    told: list[float] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        return self.tokens[-1:] == [END] or len(self.tokens) == self.request.sampling.max_new_tokens

    def draw(self, log_probabilities: np.ndarray, noise: float) -> None:
        chances = np.exp(log_probabilities)
        self.tokens.append(int(self.rng.choice(len(chances), p=chances / chances.sum())))
        self.told.append(log_probabilities[self.tokens[-1]] + noise * self.rng.normal())

    def completion(self) -> Completion:
        return Completion(
            request=self.place,
            number=self.number,
            tokens=np.array(self.tokens, dtype=np.int64),
            log_probabilities=np.array(self.told, dtype=np.float32),
            text=" ".join(map(str, self.tokens)),
            finish="end" if self.tokens[-1] == END else "length",
        )


@dataclass(frozen=True)
class Score:
    reward: float
    parts: Mapping[str, float]
    verdict: str = "right"
    reason: str = "equal"


def judge(
    reward: Callable[[Question, Completion], float],
) -> Callable[[Sequence[tuple[Question, Completion]]], list[Score]]:
    def score(pairs: Sequence[tuple[Question, Completion]]) -> list[Score]:
        values = [reward(*pair) for pair in pairs]
        return [Score(value, {"accuracy": value}, "right" if value >= 0.5 else "wrong", "said so") for value in values]

    return score


def counted(question: Question, completion: Completion) -> float:
    """A reward that can be learnt: the share of tokens that are 7."""
    return float((completion.tokens == 7).mean())


def trajectories(count: int = 8, experts: bool = False, group: int = 1) -> list[Trajectory]:
    """Random tokens, so many samples of a prompt; log-probabilities near to those of an untrained decoder."""
    rng = np.random.default_rng(3)
    made: list[Trajectory] = []
    for index in range(count):
        prompt, completion = int(rng.integers(1, 5)), int(rng.integers(1, 7))
        near = (-np.log(VOCABULARY) + rng.normal(size=completion) * 0.3).astype(np.float32)
        choices = np.tile(np.arange(8, dtype=np.int16), (prompt + completion - 1, 2, 1))  # in both mixture layers
        tokens = rng.integers(1, VOCABULARY, size=prompt + completion)
        chosen = rng.permuted(choices, axis=2)[..., :2]
        if index % group:
            before = made[-1].prompt
            tokens = np.concatenate([made[-1].tokens[:before], tokens[prompt:]])
            if made[-1].experts is not None:
                chosen = np.concatenate([made[-1].experts[: before - 1], chosen[prompt - 1 :]])
            prompt = before
        made.append(
            Trajectory(
                tokens=tokens,
                prompt=prompt,
                advantage=float(rng.normal()) if index else 0.0,
                engine=near,
                experts=chosen if experts else None,
            )
        )
    return made

"""What one rank holds at the fullest moments of a training step: every part in bytes.

The weights, the moments and whatever else stands all the time are in each moment. Beside it a step goes through these:
the rollout, the loss while all activations are there, the way back through each layer (activations go, gradients come),
and the update. The peak is the fullest of them, from the second step on.
Sources: ZeRO, arXiv 1910.02054, section 3, and DeepSpeed's own buckets; docs/ranks.md and docs/memory.md say how our
training uses them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Literal

from pipeline.memory.shapes import FLOAT, HALF, Layer, Way, adapted, layers, learning, size
from pipeline.model.config import ModelConfig
from pipeline.model.parts import LatentAttention
from pipeline.params import Distributed, Optimisation

LOGITS = {"entropy": 2**25, "policy": 2**25, "pairs": 0, "divergence": 2**24}
"""Logits held at a time, as in pipeline/training/loss.py and pipeline/gkd/divergence.py."""

FLAT = 500_000_000
"""Gradients that DeepSpeed sums at a time where nothing is split."""

SMALL = 128
"""Bytes of a token in what is not worth a formula: its number, place, rotation, log-probabilities."""

PARTS = (
    "weights",
    "cast weights",
    "gathered",
    "gradients",
    "optimiser",
    "buckets",
    "activations",
    "logits",
    "cache",
    "engine copy",
    "reference",
    "other models",
)
"""Of a breakdown, in the order in which it is shown."""

Moment = Mapping[str, float]
"""Bytes of each part that there is."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a training puts on one rank at once."""

    tokens: int  # of a micro-batch
    predictions: int  # of them: those that are unembedded
    rounds: int  # micro-batches of one update
    loss: Literal["entropy", "policy", "pairs", "divergence"] = "entropy"
    slots: int = 0  # completions that are written side by side; 0: none are
    longest: int = 0  # tokens of a prompt and its completion
    prefill: int = 0  # prompt tokens that one run of the engine takes on
    reference: bool = False  # whether the loss has a KL term
    others: float = 0.0  # bytes of models that only judge, on the same device
    host: float = 0.0  # likewise in the host's memory


@dataclass(frozen=True, slots=True)
class Peak:
    """The fullest moment of a step on one rank."""

    moment: str
    parts: Moment
    host: float = 0.0  # bytes in the host's memory: what is offloaded, judges

    @property
    def total(self) -> float:
        return sum(self.parts.values())


def peak(
    config: ModelConfig,
    options: Optimisation,
    distributed: Distributed,
    work: Work,
    buckets: Mapping[str, Any] | None = None,
) -> Peak:
    """The fullest moment of a step; `buckets` is DeepSpeed's `zero_optimization` where there are several ranks."""
    return _Step(config, options, distributed, work, buckets or {}).peak()


@dataclass(frozen=True)
class _Step:
    config: ModelConfig
    options: Optimisation
    distributed: Distributed
    work: Work
    zero: Mapping[str, Any]
    halves: list[Layer] = field(init=False)

    def __post_init__(self) -> None:
        blocks = layers(self.config, self.work.tokens, self.way)
        object.__setattr__(self, "halves", [half for block in blocks for half in block])

    @property
    def way(self) -> Way:
        return "kernels" if self.options.dtype == "float32" else "torch"

    @property
    def level(self) -> int:
        return self.distributed.zero

    def peak(self) -> Peak:
        moments = [(name, {**self._standing(), **moment}) for name, moment in self._moments()]
        name, fullest = max(moments, key=lambda named: sum(named[1].values()))
        parts = {part: fullest[part] for part in PARTS if fullest.get(part, 0.0) > 0}
        return Peak(name, parts, self._host())

    # ------------------------------------------------------------ what stands all the time

    def _standing(self) -> dict[str, float]:
        """Moments of a step may say more of a part than this."""
        config, options, ranks, work = self.config, self.options, self.distributed.world, self.work
        whole, learns = size(config), learning(config, options.adapter)
        held = whole + learns * (options.adapter is not None)
        offload = self.distributed.offload
        optimiser = 8 * learns if self.level == 0 else 12 * learns / ranks
        reference = learns if options.adapter is not None else whole
        copied = whole if self.level == 3 else 0
        if options.adapter is not None:
            copied = adapted(config, options.adapter.targets)
        return {
            "weights": 0.0 if offload == "all" else FLOAT * held / (ranks if self.level == 3 else 1),
            "optimiser": 0.0 if offload != "none" else optimiser,
            "buckets": self._buckets(),
            "gathered": self._gathered(whole) if self.level == 3 else 0.0,
            "cache": work.slots * work.longest * _cached(config) * FLOAT,
            "engine copy": FLOAT * copied if work.slots else 0.0,
            "reference": FLOAT * reference if work.reference else 0.0,
            "other models": work.others,
        }

    def _buckets(self) -> float:
        """That gradients are summed in, as large as it is configured whatever the model."""
        return FLOAT * self.zero["reduce_bucket_size"] if self.level else 0.0

    def _block(self) -> int:
        """Numbers of the largest thing that is gathered as one: a block, whose gradient is whole for a moment, too."""
        blocks = [attention.size + rest.size for attention, rest in zip(*self._pairs(), strict=True)]
        return max(*blocks, self._head())

    def _gathered(self, whole: int) -> float:
        """Weights that may be whole at once, the unembedding, what is fetched ahead; and of one block its gradient and
        copies on the way from and to the ranks, two by measurement.
        """
        alive = max(self._block(), min(self.zero["stage3_max_live_parameters"], whole))
        ahead = min(self.zero["stage3_prefetch_bucket_size"], whole)
        return FLOAT * (alive + 3 * self._block() + self._head() + ahead)

    def _host(self) -> float:
        offload, ranks = self.distributed.offload, self.distributed.world
        learns = learning(self.config, self.options.adapter)
        optimiser = 0.0 if offload == "none" else (12 + FLOAT) * learns / ranks  # and the gradients that it reads
        return optimiser + self.work.host + (FLOAT * size(self.config) / ranks if offload == "all" else 0.0)

    # ------------------------------------------------------------ moments

    def _moments(self) -> Iterator[tuple[str, Moment]]:
        work = self.work
        gradients = self._share() * FLOAT * learning(self.config, self.options.adapter)
        # Where everything is split DeepSpeed keeps the room of a step's gradients for the next one.
        before = gradients if work.rounds > 1 or self.level == 3 else 0.0
        if work.slots:
            # Logits, and what the sampler makes of them: probabilities, their sums, the order of the likely ones.
            logits = 5 * FLOAT * work.slots * self.config.vocab_size
            yield "rollout", {"logits": logits, "activations": self._prefill()}
        yield "loss", {"gradients": before, **self._loss()}
        yield from (("backward", moment) for moment in self._backward(before))
        flat = 0.0
        if self.distributed.world > 1 and self.level == 0:  # gradients are laid end to end to be summed
            flat = min(gradients, FLOAT * FLAT)
        yield "update", {"gradients": gradients, **({"buckets": flat} if flat else {})}

    def _share(self) -> float:
        """Of the gradients, what a rank keeps."""
        if self.distributed.offload != "none":
            return 0.0
        return 1 / self.distributed.world if self.level >= 2 else 1.0

    def _prefill(self) -> float:
        """Without gradients only one half of a block has anything to hold."""
        return self.work.prefill * (max(half.kept for half in self.halves) + FLOAT * self.config.hidden_size)

    def _head(self) -> int:
        return self.config.vocab_size * self.config.hidden_size

    def _loss(self) -> Moment:
        """All activations are there, and a chunk of logits."""
        work, row = self.work, FLOAT * self.work.tokens * self.config.hidden_size
        kept = sum(self._kept()) + row + SMALL * work.tokens  # the last norm's input
        learns = self.options.adapter is None and work.loss != "pairs"
        head = FLOAT * self._head() * learns
        if work.loss == "pairs":
            return {"activations": kept + 2 * row, "cast weights": self._cast()}
        rows = min(work.predictions, max(1, LOGITS[work.loss] // self.config.vocab_size))
        chunk, hidden = FLOAT * rows * self.config.vocab_size, FLOAT * rows * self.config.hidden_size
        several = rows < work.predictions
        at_once = {"entropy": 2 + several, "policy": 2 + several, "divergence": 6}[work.loss]
        logits = head + hidden + max(at_once * chunk, chunk + hidden + head)
        if work.loss == "policy":  # which is at its fullest on the way back, but not with all its entropies
            logits = max(logits, hidden + 3 * chunk)
        return {"activations": kept + 2 * row, "logits": logits, "cast weights": self._cast()}

    def _cast(self) -> float:
        """bfloat16 copies of the weights, which products keep. Autocast's own stay for all of a forward pass."""
        if self.way == "kernels":
            return 0.0
        numbers = sum(matrix.size for half in self.halves for matrix in half.matrices)
        experts = sum(half.experts for half in self.halves)
        return HALF * (numbers - experts if self.options.checkpoint_activations else numbers)

    def _backward(self, before: float) -> Iterator[Moment]:
        """One moment for each half of a block, from the last to the first, and one for the embedding."""
        work, share, learns = self.work, self._share(), self.options.adapter is None
        row, head = FLOAT * work.tokens * self.config.hidden_size, FLOAT * self._head()
        untied = 1 if self.config.tie_word_embeddings or work.loss == "pairs" else 2
        outside = head * learns * (work.loss != "pairs")  # the unembedding's gradient, which is there first
        kept, come = list(accumulate(self._kept())), outside * share
        for index in reversed(range(len(self.halves))):
            half = self.halves[index]
            new = FLOAT * self._learning(half)
            come += new * share
            alive = kept[index] + SMALL * work.tokens + self._again(index) + work.tokens * half.passing
            # Whole until it is added to what there is, or is dealt out; that of a gathered block is counted there.
            passing = 0.0 if self.level == 3 else new + outside if before else new * (share < 1.0)
            gradients = passing + (before or come)
            merged, routed = self._merged(half)
            yield {
                "activations": alive + merged + routed,
                "gradients": gradients,
                "cast weights": self._cast(),
            }
        # The embedding's gradient is as large as itself, and is added to what tied weights have got already.
        last = FLOAT * self._head() * learns
        everything = before or share * FLOAT * learning(self.config, self.options.adapter)
        again = last if before or untied == 1 else (1 - share) * last
        yield {"activations": 2 * row + SMALL * work.tokens, "gradients": everything + again}

    def _learning(self, half: Layer) -> int:
        adapter = self.options.adapter
        return half.size if adapter is None else sum(m.adapter(adapter.rank) for m in half.adapted(adapter))

    def _kept(self) -> list[float]:
        """Bytes that each half keeps for the way back, for all tokens."""
        if self.options.checkpoint_activations:
            return [half.stays * self.work.tokens for half in self.halves]
        return [self._whole(half) for half in self.halves]

    def _whole(self, half: Layer) -> float:
        """What a half keeps where nothing is computed again."""
        adapter, tokens = self.options.adapter, self.work.tokens
        if adapter is None:
            return half.kept * tokens
        width = FLOAT if self.way == "kernels" else HALF
        plain = [matrix for matrix in half.adapted(adapter) if matrix.names != ("experts",)]
        scaled = sum(width * matrix.rows * adapter.rank for matrix in plain)
        merged = half.experts_kept if "experts" in adapter.targets else 0.0
        return (half.kept - merged + width * adapter.rank * len(plain)) * tokens + scaled

    def _again(self, index: int) -> float:
        """The insides of a block that is computed again, as far as they are still there."""
        if not self.options.checkpoint_activations:
            return 0.0
        attention = self.halves[index - index % 2]
        inside = self._whole(attention) - attention.stays * self.work.tokens  # its input stayed
        if index % 2:
            inside += self._whole(self.halves[index])
        cast = HALF * max(a.experts + b.experts for a, b in zip(*self._pairs(), strict=True))
        return inside + (cast if self.way == "torch" else 0.0)

    def _merged(self, half: Layer) -> tuple[float, float]:
        """Experts with an adapter: their merged matrices with the gradient of those, and what these have kept."""
        adapter = self.options.adapter
        if adapter is None or "experts" not in adapter.targets:
            return 0.0, 0.0
        return 2 * FLOAT * half.experts, half.experts_kept * self.work.tokens

    def _pairs(self) -> tuple[list[Layer], list[Layer]]:
        """Attention and feed-forward of each block."""
        return self.halves[::2], self.halves[1::2]


def _cached(config: ModelConfig) -> int:
    """Numbers that the cache holds of a token."""
    attention = config.attention
    if isinstance(attention, LatentAttention):
        return config.num_hidden_layers * (attention.kv_lora_rank + attention.qk_rope_head_dim)
    return config.num_hidden_layers * 2 * attention.num_key_value_heads * attention.head_dim

"""What a decoder's two kinds of layers are made of: numbers of weights, and numbers kept of each token to learn by.

Shapes: T tokens, D hidden, H query heads, G key and value heads, d and e widths, I feed-forward width, E experts, k of
them per token; latent attention: C the latent's width, R the rotary one.
Two ways of computing keep different things. `kernels`: float32 on a CPU, by pipeline/model/cpp. `torch`: bfloat16 as on
a GPU, where autocast keeps a copy of what goes into each product. The figures follow what pipeline/model saves for its
backward passes, function by function.
"""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from pipeline.model.config import ModelConfig
from pipeline.model.parts import LatentAttention
from pipeline.params import Adapter

Way = Literal["kernels", "torch"]

FLOAT, HALF, INTEGER = 4, 2, 8
"""Bytes of a number."""

VECTOR, CHUNK = 16, 96
"""Floats of a processor's vector, and tokens of an expert at a time: as in cpp/matrix.h and cpp/experts.h."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """`count` matrices (rows, columns), one for each expert or one alone."""

    names: tuple[str, ...]  # as an adapter's targets have them; empty: never adapted
    rows: int
    columns: int
    count: int = 1

    @property
    def size(self) -> int:
        return self.rows * self.columns * self.count

    def adapter(self, rank: int) -> int:
        """Numbers of its change of low rank."""
        return rank * (self.rows + self.columns) * self.count


@dataclass(frozen=True, slots=True)
class Layer:
    """One of the two halves of a block: attention, or the feed-forward. Bytes are per token."""

    matrices: tuple[Matrix, ...]
    vectors: int  # numbers of norms and biases
    kept: float  # for the backward pass
    passing: float  # at most at once on the way back, beside what was kept
    stays: float = 0.0  # of `kept`, what stays until the loss even where the block is computed again
    experts_kept: float = 0.0  # of `kept`, what an adapter of the experts does not keep

    @property
    def size(self) -> int:
        """Weights."""
        return self.vectors + sum(matrix.size for matrix in self.matrices)

    @property
    def experts(self) -> int:
        """Weights of routed experts."""
        return sum(matrix.size for matrix in self.matrices if matrix.names == ("experts",))

    def adapted(self, adapter: Adapter) -> tuple[Matrix, ...]:
        return tuple(m for m in self.matrices if m.names and set(m.names) <= set(adapter.targets))


def layers(config: ModelConfig, tokens: int, way: Way) -> Iterator[tuple[Layer, Layer]]:
    """Attention and feed-forward of each block, for runs of so many tokens."""
    attention = (
        _latent(config, config.attention, way)
        if isinstance(config.attention, LatentAttention)
        else _grouped(config, way)
    )
    sparse = config.mixture is not None and bool(config.mixture.layers)
    experts = _mixture(config, tokens, way) if sparse else None
    dense = _dense(config, way)
    for layer in range(config.num_hidden_layers):
        routed = experts is not None and config.mixture is not None and layer in config.mixture.layers
        yield attention, experts if routed and experts is not None else dense


def _norm(width: int) -> float:
    """Bytes that the norm before a layer keeps, and the copies of its output that products keep, as kernels have it."""
    return FLOAT * (2 * width + 1)


def _grouped(config: ModelConfig, way: Way) -> Layer:
    attention, hidden = config.attention, config.hidden_size
    assert not isinstance(attention, LatentAttention)
    width, heads, groups = attention.head_dim, config.num_attention_heads, attention.num_key_value_heads
    query, key = heads * width, groups * width
    matrices = (
        Matrix(("q_proj",), query, hidden),
        Matrix(("k_proj",), key, hidden),
        Matrix(("v_proj",), key, hidden),
        Matrix(("o_proj",), hidden, query),
    )
    vectors = (
        hidden + (query + 2 * key) * attention.qkv_bias + hidden * attention.output_bias + 2 * width * attention.qk_norm
    )
    if way == "kernels":
        normed = attention.qk_norm * (query + key + heads + groups)
        kept = _norm(hidden) + FLOAT * (normed + 2 * query + 2 * key + heads)
        passing = FLOAT * (2 * query + 2 * key + hidden)
    else:
        normed = attention.qk_norm * (HALF * (query + key) + FLOAT * (heads + groups))
        # The norm's input, a copy of its output for each of three products; queries, keys, values and the result as
        # attention takes them, and the result once more as the last product does.
        kept = FLOAT * (hidden + 1 + heads) + 3 * HALF * hidden + normed + HALF * (3 * query + 2 * key)
        passing = HALF * (4 * query + 4 * key) + FLOAT * 2 * hidden
    return Layer(matrices, vectors, kept, passing, stays=FLOAT * hidden)


def _latent(config: ModelConfig, attention: LatentAttention, way: Way) -> Layer:
    hidden, heads, rank, rotary = (
        config.hidden_size,
        config.num_attention_heads,
        attention.kv_lora_rank,
        attention.qk_rope_head_dim,
    )
    width = attention.qk_nope_head_dim + rotary
    query, value = heads * width, heads * attention.v_head_dim
    expanded = heads * (attention.qk_nope_head_dim + attention.v_head_dim)
    low = attention.q_lora_rank
    asks = (
        (Matrix(("q_proj",), query, hidden),)
        if low is None
        else (Matrix(("q_a_proj",), low, hidden), Matrix(("q_b_proj",), query, low))
    )
    matrices = (
        *asks,
        Matrix(("kv_a_proj_with_mqa",), rank + rotary, hidden),
        Matrix(("kv_b_proj",), expanded, rank),
        Matrix(("o_proj",), hidden, value),
    )
    biases = attention.bias * ((low or 0) + rank + rotary + hidden)
    vectors = hidden + (low or 0) + rank + biases
    compressed = 0 if low is None else 2 * low + 1
    if way == "kernels":
        numbers = compressed + query + 2 * rank + 1 + expanded + rotary + heads + value
        kept = _norm(hidden) + FLOAT * numbers
        passing = FLOAT * (query + expanded + heads * rotary + value + hidden)
    else:
        # Keys are put together from parts, values and results padded to the keys' width.
        halves = 2 * hidden + compressed + 2 * rank + rotary + 4 * query + value
        kept = FLOAT * (hidden + 1 + heads) + HALF * halves
        passing = HALF * (6 * query + expanded) + FLOAT * 2 * hidden
    return Layer(matrices, vectors, kept, passing, stays=FLOAT * hidden)


def _dense(config: ModelConfig, way: Way) -> Layer:
    hidden, size = config.hidden_size, config.intermediate_size
    matrices = _feed_forward(hidden, size)
    vectors = hidden + config.mlp_bias * (2 * size + hidden)
    kept, passing = _gated(hidden, size, way)
    return Layer(matrices, vectors, _before(hidden, way) + kept, passing)


def _feed_forward(hidden: int, size: int) -> tuple[Matrix, Matrix]:
    return Matrix(("gate_proj", "up_proj"), 2 * size, hidden), Matrix(("down_proj",), hidden, size)


def _before(hidden: int, way: Way) -> float:
    """The second norm's input, and its output where that itself is kept."""
    return _norm(hidden) if way == "kernels" else FLOAT * (hidden + 1)


def _gated(hidden: int, size: int, way: Way) -> tuple[float, float]:
    """What a gated feed-forward keeps of a token, and what passes on its way back."""
    if way == "kernels":
        return FLOAT * 3 * size, FLOAT * (2 * size + 2 * hidden)
    return HALF * (hidden + 4 * size), HALF * 4 * size + FLOAT * 2 * hidden


def _mixture(config: ModelConfig, tokens: int, way: Way) -> Layer:
    mixture, hidden = config.mixture, config.hidden_size
    assert mixture is not None
    experts, k, size = mixture.experts, mixture.top_k, mixture.expert_size
    matrices: tuple[Matrix, ...] = (
        Matrix((), experts, hidden),
        Matrix(("experts",), 2 * size, hidden, experts),
        Matrix(("experts",), hidden, size, experts),
    )
    shared_kept = shared_passing = 0.0
    if mixture.shared_size:
        matrices += _feed_forward(hidden, mixture.shared_size)
        shared_kept, shared_passing = _gated(hidden, mixture.shared_size, way)
    # Scores, the experts' shares of the balance loss, the choice, its weights and their sum.
    routing = FLOAT * (2 * experts + 2 * k + 3) + INTEGER * k
    if way == "kernels":
        held = 2 * size * _columns(tokens * k / experts) * experts / tokens  # of gate and up, padded
        routed = FLOAT * held + 2 * INTEGER * k
        passing = FLOAT * (k * hidden + k + 2 * hidden)
    else:
        # The router's own copy of its input in float32, the experts' one, sorted rows, gate and up, and what comes of
        # them: the activation, its product, the weighted product.
        routing += FLOAT * hidden
        routed = HALF * (hidden + k * (hidden + 5 * size)) + 2 * INTEGER * k
        passing = HALF * k * (2 * hidden + 4 * size) + FLOAT * 2 * hidden
    kept = _before(hidden, way) + routing + routed + shared_kept
    return Layer(
        matrices,
        hidden,
        kept,
        max(passing, shared_passing),
        stays=FLOAT * (2 * experts + k + 2) + INTEGER * k,
        # In their place the sum that they are added to, where that is not kept anyhow.
        experts_kept=routed - (FLOAT * hidden if mixture.shared_size else 0),
    )


@lru_cache
def _columns(mean: float) -> float:
    """Columns that the kernels keep for an expert, over a Poisson's worth of tokens with this mean."""
    if mean > 30 * CHUNK:
        return mean * _spread(CHUNK) / CHUNK
    most = int(mean + 10 * math.sqrt(mean) + 10)
    logs = (count * math.log(mean) - mean - math.lgamma(count + 1) for count in range(most))
    return sum(math.exp(log) * (n // CHUNK * _spread(CHUNK) + _spread(n % CHUNK)) for n, log in enumerate(logs))


def _spread(count: int) -> int:
    """Floats from one row of so many to the next: an odd number of vectors."""
    return -(-count // VECTOR) * VECTOR | VECTOR if count else 0


def size(config: ModelConfig) -> int:
    """Parameters of the model, tied ones once."""
    unembedding = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    blocks = sum(half.size for block in layers(config, 1, "torch") for half in block)
    return config.vocab_size * config.hidden_size + unembedding + config.hidden_size + blocks


def learning(config: ModelConfig, adapter: Adapter | None) -> int:
    """Parameters that learn."""
    if adapter is None:
        return size(config)
    return sum(m.adapter(adapter.rank) for half in _halves(config) for m in half.adapted(adapter))


def adapted(config: ModelConfig, targets: Collection[str]) -> int:
    """Numbers of the matrices that an adapter with these targets changes."""
    return sum(m.size for half in _halves(config) for m in half.matrices if m.names and set(m.names) <= set(targets))


def _halves(config: ModelConfig) -> Iterator[Layer]:
    return (half for block in layers(config, 1, "torch") for half in block)

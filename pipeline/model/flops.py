"""Floating-point operations of a decoder, from its activated parameters and the lengths of its sequences.

A matrix of N parameters costs 2N operations per token (Kaplan et al. 2020, arXiv 2001.08361, section 2.1); of the
routed experts only those that act on a token count. A token that looks at another one costs 2(d + e) operations a head
and layer, d and e being the widths of keys and values (PaLM, arXiv 2204.02311, appendix B). The backward pass costs
twice the forward one.
Different from the sources: attention is causal, so a token pays for what lies before it and for itself, half of what
they count; the unembedding is paid by the tokens that predict something. Norms, rotations and softmax are left out.
Under an adapter weights have no gradients, so the backward pass costs as much as the forward one; the adapter's own
products are left out, too.
These are the operations that the model asks for, not those that a machine does: padding, and what a cache of latents
saves or adds, do not count. So figures of different machines and engines compare.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.model.adapter import is_adapted
from pipeline.model.decoder import Decoder
from pipeline.model.experts import MixtureOfExperts, Router
from pipeline.model.layers import GroupedQueryAttention, Linear, MultiHeadLatentAttention


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """Operations of one model's forward pass."""

    token: int  # per token, through all layers
    pair: int  # per token and token that it looks at, all heads and layers
    prediction: int  # per token that is unembedded
    passes: int = 3  # that forward and backward are worth, in forward ones

    def forward(self, lengths: Sequence[int], predictions: int) -> int:
        """Of whole sequences, of whose tokens `predictions` are unembedded."""
        pairs = sum(length * (length + 1) // 2 for length in lengths)
        return self.token * sum(lengths) + self.pair * pairs + self.prediction * predictions

    def training(self, lengths: Sequence[int], predictions: int) -> int:
        """Forward and backward."""
        return self.passes * self.forward(lengths, predictions)

    def generation(self, prompt: int, completions: Sequence[int]) -> int:
        """Of a prompt, read once, and completions of these lengths, whose last tokens are not read again."""
        read = [max(length - 1, 0) for length in completions]
        pairs = prompt * (prompt + 1) // 2 + sum(count * prompt + count * (count + 1) // 2 for count in read)
        return self.token * (prompt + sum(read)) + self.pair * pairs + self.prediction * (1 + sum(read))


def arithmetic(model: Decoder) -> Arithmetic:
    """The operations of `model`, read off its matrices."""
    token = pair = 0
    for block in model.layers:
        for module in block.modules():
            match module:
                case MixtureOfExperts():
                    mixture = module.gate.mixture
                    token += 2 * module.experts.size * mixture.top_k // mixture.experts
                case Linear() | Router():
                    token += 2 * module.weight.numel()
                case GroupedQueryAttention():
                    pair += 2 * model.config.num_attention_heads * 2 * module.head_dim
                case MultiHeadLatentAttention():
                    widths = module.shape.qk_nope_head_dim + module.shape.qk_rope_head_dim + module.shape.v_head_dim
                    pair += 2 * module.heads * widths
    return Arithmetic(token, pair, 2 * model.unembedding.numel(), passes=2 if is_adapted(model) else 3)

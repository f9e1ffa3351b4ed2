"""From a packed run to its loss as one module, as `Engine` asks, and the reference that the policy is held near to."""

import copy
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pipeline.model.adapter import is_adapted, learning
from pipeline.model.attention import PackedSequences
from pipeline.model.decoder import Decoder, Output
from pipeline.model.experts import balance_loss, expert_load
from pipeline.params import GRPO
from pipeline.rl.loss import LossTerms, policy_loss
from pipeline.rl.trajectories import PolicyBatch
from pipeline.training.engine import Engine, kept_buffers
from pipeline.training.loss import token_log_probabilities


class Terms(NamedTuple):
    """What one run says."""

    policy: LossTerms
    balance: Tensor  # scalar: sequence-wise balance loss, mean over samples, sum over layers; 0 in a dense model
    load: Tensor | None  # (layers, E) int64: tokens per expert; None in a dense model
    log_probabilities: Tensor  # (P,) float32, without gradient


class PolicyObjective(nn.Module):
    """The policy's forward pass. Under `no_grad` it serves to ask for log-probabilities alone."""

    def __init__(self, decoder: Decoder, options: GRPO) -> None:
        super().__init__()
        self.decoder = decoder
        self._options = options

    def forward(self, batch: PolicyBatch, reference: Tensor | None = None) -> Terms:
        output, log_probabilities, entropy = _predict(self.decoder, batch, self._options.temperature)
        policy = policy_loss(log_probabilities, entropy, reference, batch, self._options.loss)
        sparse = bool(output.routing)
        return Terms(
            policy=policy,
            balance=balance_loss(output.routing, batch.flat.lengths, batch.families)
            if sparse
            else torch.zeros_like(policy.loss),
            load=expert_load(output.routing, batch.texts) if sparse else None,
            log_probabilities=log_probabilities.detach(),
        )


class Reference:
    """The policy as it was, which does not learn. Its routers choose experts by themselves: replay is the policy's.

    A copy of the policy; where that learns by an adapter, the policy itself with a copy of the adapter in place of its
    own, which at first adds nothing.
    """

    def __init__(self, policy: Decoder, options: GRPO) -> None:
        adapted = is_adapted(policy)
        self._decoder = policy if adapted else copy.deepcopy(policy).requires_grad_(False)
        self._adapter = {name: part.detach().clone() for name, part in learning(policy).items()} if adapted else None
        self._options = options

    @torch.no_grad()
    def __call__(self, batch: PolicyBatch) -> Tensor:
        """Log-probabilities (P,) float32 of a run's predictions."""
        bfloat16 = self._options.dtype == "bfloat16"
        with torch.autocast(batch.engine.device.type, torch.bfloat16, enabled=bfloat16):
            return _predict(self._decoder, batch, self._options.temperature, replay=False, adapter=self._adapter)[1]

    def become(self, policy: Decoder, engine: Engine) -> None:
        """The policy as it is now; `engine` knows where its weights are."""
        if self._adapter is None:
            engine.copy(policy, self._decoder)
        else:
            self.load_state(policy.state_dict())

    def state(self) -> dict[str, Tensor]:
        """The tensors themselves, not copies, tied ones once."""
        if self._adapter is not None:
            return self._adapter
        return dict(self._decoder.named_parameters()) | kept_buffers(self._decoder)

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        for name, tensor in self.state().items():
            tensor.copy_(state[name].view_as(tensor))


def _predict(
    decoder: Decoder,
    batch: PolicyBatch,
    temperature: float,
    *,
    replay: bool = True,
    adapter: dict[str, Tensor] | None = None,
) -> tuple[Output, Tensor, Tensor]:
    """The decoder's output, and log-probability and entropy (P,) of each prediction at the sampling temperature.

    `adapter` takes the place of the decoder's own.
    """
    flat = batch.flat
    attention = PackedSequences(flat.lengths, batch.families)
    given = (flat.tokens, flat.positions, attention, batch.replay if replay else None)
    output = decoder(*given) if adapter is None else functional_call(decoder, adapter, given)
    return output, *token_log_probabilities(
        output.hidden, decoder.unembedding, flat.predictors, flat.targets, temperature
    )

"""Which experts act on which kind of text."""

from collections.abc import Sequence

import torch

from pipeline.errors import InputError
from pipeline.model.attention import PackedSequences
from pipeline.model.decoder import Decoder
from pipeline.model.experts import expert_load

RUN_TOKENS = 8_192  # at once through the model, about


@torch.inference_mode()
def expert_use(
    model: Decoder, sequences: Sequence[Sequence[int]], tasks: Sequence[str]
) -> dict[str, list[list[float]]]:
    """Task → for each mixture layer, the share of the choices that fell on each expert, (layers, E); a row sums to 1.

    `tasks` names the task of each of the token `sequences`. Raises InputError for a model without experts.
    """
    if model.config.mixture is None or not model.config.mixture.layers:
        raise InputError(f"a {model.config.model_type} model with these layers has no experts")
    use = {}
    for task in sorted(set(tasks)):
        own = [sequence for sequence, of in zip(sequences, tasks, strict=True) if of == task]
        load = torch.stack([_load(model, run) for run in runs(own)]).sum(0)
        use[task] = (load / load.sum(1, keepdim=True)).tolist()
    return use


def _load(model: Decoder, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
    lengths = [len(sequence) for sequence in sequences]
    device = model.unembedding.device
    tokens = torch.tensor([token for sequence in sequences for token in sequence], device=device)
    positions = torch.cat([torch.arange(length) for length in lengths]).to(device)
    return expert_load(model(tokens, positions, PackedSequences(lengths)).routing)


def runs(sequences: Sequence[Sequence[int]]) -> list[list[Sequence[int]]]:
    """In parts of about RUN_TOKENS."""
    runs: list[list[Sequence[int]]] = [[]]
    size = 0
    for sequence in sequences:
        if runs[-1] and size + len(sequence) > RUN_TOKENS:
            runs.append([])
            size = 0
        runs[-1].append(sequence)
        size += len(sequence)
    return runs

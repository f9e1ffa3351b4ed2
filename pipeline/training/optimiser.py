"""AdamW and its learning rate (Loshchilov & Hutter 2019; warm-up, then a cosine).

Weight decay holds for matrices only: gains and biases have no scale to be kept small.
"""

import math
from inspect import unwrap

import torch
from torch import Tensor, nn

from pipeline.params import Optimisation

ROW = 4096


def learning_rate(options: Optimisation, step: int) -> float:
    """Rate at `step`, counted from 0: linear from nothing, then a cosine to the final share at the last step."""
    warmup = math.ceil(options.warmup * options.steps)
    if step < warmup:
        return options.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, options.steps - 1 - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return options.learning_rate * (options.final_learning_rate + (1 - options.final_learning_rate) * cosine)


class AdamW(torch.optim.AdamW):
    """torch's, its methods without the wrappers that import torch's compiler at the first call, which takes seconds."""

    add_param_group = unwrap(torch.optim.AdamW.add_param_group)
    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))
    zero_grad = unwrap(torch.optim.AdamW.zero_grad)


def adamw(model: nn.Module, options: Optimisation, kind: type[AdamW] = AdamW) -> AdamW:
    """The optimiser of all parameters that learn."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in learning if parameter.ndim >= 2], "weight_decay": options.weight_decay},
        {"params": [parameter for parameter in learning if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    betas = (options.beta1, options.beta2)
    return kind(groups, lr=options.learning_rate, betas=betas, fused=True)


def gradient_norm(gradients: list[Tensor]) -> float:
    """L2 norm of all gradients as one vector.

    By rows, each of which one core adds up: so the bits do not depend on how many cores there are.
    """
    norms = []
    for gradient in gradients:
        numbers = gradient.flatten()
        whole = len(numbers) // ROW * ROW
        rows = numbers[:whole].view(-1, ROW), numbers[None, whole:]
        norms += [torch.linalg.vector_norm(part, dim=1) for part in rows if part.numel()]
    return torch.linalg.vector_norm(torch.cat(norms).double()).item()

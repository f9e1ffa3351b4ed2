"""The options that make training take less memory, applied to a model that is about to learn."""

from pipeline.model.adapter import attach
from pipeline.model.decoder import Decoder
from pipeline.params import Optimisation


def prepare(model: Decoder, options: Optimisation, seed: int) -> Decoder:
    """Give `model` its adapter, drawn from `seed`, and tell it what to keep for the backward pass; returns it.

    Raises InputError where the model has no such matrices as the adapter's targets.
    """
    model.checkpoint_activations = options.checkpoint_activations
    if options.adapter is not None:
        attach(model, options.adapter.rank, options.adapter.alpha, options.adapter.targets, seed)
    return model

"""The teacher: a model that learns nothing here, and what it must have in common with its student."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from pipeline.errors import InputError
from pipeline.model.attention import PackedSequences
from pipeline.model.checkpoint import load_model
from pipeline.model.decoder import Decoder
from pipeline.model.device import stage_device
from pipeline.model.tokenizer import load_tokenizer
from pipeline.training.batches import Batch


class Teacher:
    """A decoder as the student's judge. It computes in the dtype that the student does."""

    def __init__(self, decoder: Decoder, *, bfloat16: bool) -> None:
        self.decoder = decoder.requires_grad_(False)
        self.decoder.eval()
        self._bfloat16 = bfloat16

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        """Hidden states (T, D) of a run, without gradients."""
        with torch.autocast(batch.tokens.device.type, torch.bfloat16, enabled=self._bfloat16):
            output = self.decoder(batch.tokens, batch.positions, PackedSequences(batch.lengths))
        return output.hidden

    @property
    def unembedding(self) -> Tensor:
        """(V, D)"""
        return self.decoder.unembedding


def load_teacher(folder: Path, tokenizer: PreTrainedTokenizerFast, student: str, *, bfloat16: bool) -> Teacher:
    """Read the teacher of a student, whose tokenizer must have the same tokens with the same ids.

    `student` says in a message whose tokenizer it is. Raises InputError where the vocabularies differ.
    """
    ours, theirs = tokenizer.get_vocab(), load_tokenizer(folder).get_vocab()
    if ours != theirs:
        different = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
        token = different[0]
        raise InputError(
            f"{student}.on_policy: {len(different)} tokens are not the same for {student} and its teacher {folder} "
            f"({token!r}: {ours.get(token, 'missing')} and {theirs.get(token, 'missing')}): "
            "must be one vocabulary with the same ids, as the teacher scores the student's tokens"
        )
    return Teacher(load_model(folder, device=stage_device()), bfloat16=bfloat16)

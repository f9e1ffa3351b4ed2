"""A tokenizer for the reference models' 61 tokens, and what a whole forward says about a completion."""

from collections.abc import Iterable

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from pipeline.generation.engine import Engine
from pipeline.generation.requests import Completion, Request
from pipeline.model.attention import PackedSequences
from pipeline.model.decoder import Decoder, Output
from pipeline.params import Sampling

CHARACTERS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUV"
GREEDY = Sampling(temperature=0.0, max_new_tokens=20)


def toy_tokenizer() -> PreTrainedTokenizerFast:
    """61 tokens: pad, bos, eos and one for each of 58 characters."""
    names = ["<pad>", "<bos>", "<eos>", *CHARACTERS]
    backend = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")


TOKENIZER = toy_tokenizer()


def request(prompt: Tensor, sampling: Sampling, samples: int = 1, identity: str = "") -> Request:
    tokens = tuple(prompt.tolist())
    return Request(tokens, samples, sampling, identity or str(tokens))


def engine(model: Decoder, slots: int = 4, *, seed: int = 0, max_length: int = 64, experts: bool = False) -> Engine:
    return Engine(model, TOKENIZER, seed=seed, slots=slots, max_length=max_length, record_experts=experts)


def complete(engine: Engine, requests: Iterable[Request]) -> dict[tuple[int, int], Completion]:
    for item in requests:
        engine.submit(item)
    return {(completion.request, completion.number): completion for completion in engine.run()}


@torch.no_grad()
def whole_forward(model: Decoder, request: Request, completion: Completion) -> Output:
    """The trainer's view: prompt and completion but for the last token, at once."""
    tokens = torch.tensor([*request.prompt, *completion.tokens.tolist()[:-1]])
    return model(tokens, torch.arange(len(tokens)), PackedSequences([len(tokens)]))

"""Decoding by CUDA graphs: the same completions on a GPU; without one, that nothing in a graph looks at its values."""

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pipeline.generation.graphs import DecodeGraphs, padded
from pipeline.model import dispatch, rope
from pipeline.model.cache import SlotCache
from pipeline.model.config import ModelConfig
from pipeline.model.decoder import Decoder
from pipeline.params import Sampling
from tests.unit.model.reference import config_of, decoder, random_sequences

from .toys import complete, engine, request

FAMILIES = ["deepseek-query-latent-groups", "deepseek-halves-bias-two-shared", "qwen3-moe", "llama-grouped"]


@pytest.mark.parametrize("case", FAMILIES)
def test_a_decoding_step_reads_nothing_back_from_the_device(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(dispatch, "padded_experts", dispatch.grouped_experts)  # the way that a GPU takes
    monkeypatch.setattr(rope, "_frequencies_on", rope._frequencies_on.__wrapped__)  # keep no tensor of this test
    config = ModelConfig.from_hf(config_of(case))
    # Tensors without values: whatever asks for one, as a host does that waits for its device, raises.
    model = Decoder(config).cast(torch.bfloat16)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        cache = SlotCache(config, 8, 32, torch.bfloat16, "cpu")
        output = DecodeGraphs(model, cache, 8).forward(rows=4, length=16)
    assert output.hidden.shape == (4, config.hidden_size)


def test_shapes_are_padded_to_few() -> None:
    assert [padded(size, 1, 12) for size in (1, 2, 3, 4, 5, 9, 12)] == [1, 2, 4, 4, 8, 12, 12]
    assert [padded(size, 128, 300) for size in (1, 128, 129, 257)] == [128, 128, 256, 300]


def tokens_of(completions: dict[tuple[int, int], Any]) -> dict[tuple[int, int], list[int]]:
    return {key: completion.tokens.tolist() for key, completion in completions.items()}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("case", FAMILIES)
def test_graphs_say_what_runs_without_them_say(case: str) -> None:
    model = decoder(case).cuda()
    sampling = Sampling(temperature=0.0, max_new_tokens=20)
    requests = [request(prompt, sampling, samples=2) for prompt in random_sequences([7, 1, 33, 12, 2, 19], seed=3)]
    by_graph, plain = engine(model, slots=5), engine(model, slots=5)
    plain._graphs = None
    expected = complete(plain, requests)
    found = complete(by_graph, requests)
    assert by_graph._graphs is not None
    assert by_graph._graphs._graphs, "no graph was captured"
    agree = [tokens_of(found)[key] == tokens for key, tokens in tokens_of(expected).items()]
    assert sum(agree) >= len(agree) - 1, "padding changes the last bits of a product, so one near tie may flip"

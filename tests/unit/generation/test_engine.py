"""The engine against transformers, against the trainer's forward, and against itself in other company."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.errors import InputError
from pipeline.generation.engine import Engine
from pipeline.generation.requests import Completion, Piece, Request
from pipeline.model.checkpoint import load_model
from pipeline.model.decoder import Decoder
from pipeline.model.decoding import NativeDecoding
from pipeline.params import Sampling
from tests.unit.model.reference import CASES, decoder, random_sequences, write_checkpoint

from .toys import GREEDY, TOKENIZER, complete, engine, request, whole_forward

PROMPTS = random_sequences([7, 1, 33, 12, 2, 19, 5], seed=3)
SPARSE = ["deepseek-query-latent-groups", "deepseek-halves-bias-two-shared", "qwen3-moe-some-dense"]
DRAWN = Sampling(temperature=0.8, top_p=1.0, max_new_tokens=20)


@pytest.mark.parametrize("case", CASES)
def test_greedy_tokens_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    reference = write_checkpoint(case, tmp_path)
    found = complete(engine(load_model(tmp_path), slots=3), [request(prompt, GREEDY) for prompt in PROMPTS])
    for index, prompt in enumerate(PROMPTS):
        expected = reference.generate(
            prompt[None],
            attention_mask=torch.ones_like(prompt[None]),
            do_sample=False,
            max_new_tokens=20,
            pad_token_id=0,
        )
        assert found[index, 0].tokens.tolist() == expected[0, len(prompt) :].tolist()
    assert len({tuple(completion.tokens.tolist()) for completion in found.values()}) > 1


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("temperature", [0.8, 0.0])
def test_log_probabilities_are_those_of_a_whole_forward(case: str, temperature: float) -> None:
    model = decoder(case)
    sampling = Sampling(temperature=temperature, top_p=0.9, max_new_tokens=20)
    requests = [request(prompt, sampling, samples=3) for prompt in PROMPTS]
    for (index, _), completion in complete(engine(model, slots=5), requests).items():
        output = whole_forward(model, requests[index], completion)
        with torch.no_grad():
            logits = model.logits(output.hidden[len(PROMPTS[index]) - 1 :]) / (temperature or 1.0)
        expected = logits.log_softmax(-1).gather(1, torch.from_numpy(completion.tokens)[:, None])[:, 0]
        assert np.abs(completion.log_probabilities - expected.numpy()).max() < 1e-4


@pytest.mark.parametrize("case", ["deepseek-plain", "llama-grouped"])
def test_bfloat16_stays_close_to_a_whole_forward(case: str) -> None:
    model = decoder(case).cast(torch.bfloat16)
    requests = [request(prompt, DRAWN) for prompt in PROMPTS]
    gaps = []
    for (index, _), completion in complete(engine(model), requests).items():
        hidden = whole_forward(model, requests[index], completion).hidden[len(PROMPTS[index]) - 1 :]
        expected = (model.logits(hidden).float() / 0.8).log_softmax(-1)
        chosen = expected.gather(1, torch.from_numpy(completion.tokens)[:, None])[:, 0].detach().numpy()
        gaps += np.abs(completion.log_probabilities - chosen).tolist()
    assert np.median(gaps) < 0.02  # a token that rounding sends to another expert is further off


@pytest.mark.parametrize("case", SPARSE)
def test_recorded_experts_are_those_of_a_whole_forward(case: str) -> None:
    model = decoder(case)
    requests = [request(prompt, DRAWN, samples=3) for prompt in PROMPTS]
    for (index, _), completion in complete(engine(model, slots=4, experts=True), requests).items():
        routing = whole_forward(model, requests[index], completion).routing
        expected = torch.stack([layer.experts for layer in routing], dim=1).numpy()
        assert completion.experts is not None
        assert completion.experts.dtype == np.int16
        assert completion.experts.shape == expected.shape
        assert (np.sort(completion.experts) == np.sort(expected)).all()


@pytest.mark.parametrize("case", ["deepseek-plain", "qwen3-moe", "llama-grouped"])
@pytest.mark.parametrize("sampling", [GREEDY, DRAWN, Sampling(temperature=1.0, top_p=0.9, top_k=20, max_new_tokens=20)])
def test_a_completion_does_not_depend_on_its_company(case: str, sampling: Sampling) -> None:
    model = decoder(case)
    requests = [request(prompt, sampling, samples=3) for prompt in PROMPTS[:4]]
    together = {key: c.tokens.tolist() for key, c in complete(engine(model, slots=64), requests).items()}
    assert len(together) == 3 * len(requests)
    for slots in (2, 5):
        found = complete(engine(model, slots), requests)
        assert {key: c.tokens.tolist() for key, c in found.items()} == together
    tight = Engine(model, TOKENIZER, seed=0, slots=8, max_length=64, prefill_tokens=10)
    assert {key: c.tokens.tolist() for key, c in complete(tight, requests).items()} == together
    for index, item in enumerate(requests):
        alone = complete(engine(model), [item])
        assert [alone[0, n].tokens.tolist() for n in range(3)] == [together[index, n] for n in range(3)]


def test_nor_on_how_others_are_sampled() -> None:
    model = decoder("deepseek-plain")
    kinds = [DRAWN, GREEDY, Sampling(temperature=0.8, top_p=0.7, max_new_tokens=20)]
    requests = [request(prompt, kind, samples=3) for prompt, kind in zip(PROMPTS, kinds, strict=False)]
    together = complete(engine(model, slots=64), requests)
    for index, item in enumerate(requests):
        alone = complete(engine(model), [item])
        for number in range(3):
            one, other = alone[0, number], together[index, number]
            assert one.tokens.tolist() == other.tokens.tolist()
            np.testing.assert_allclose(one.log_probabilities, other.log_probabilities, atol=1e-5)


def test_samples_seeds_and_identities_differ() -> None:
    model = decoder("deepseek-plain")
    item = request(PROMPTS[0], DRAWN, samples=2)
    other = Request(item.prompt, 1, DRAWN, "another")
    texts = [c.text for c in complete(engine(model), [item, other]).values()]
    texts += [c.text for c in complete(engine(model, seed=1), [item]).values()]
    assert len(set(texts)) == 5


class Counting:
    """Counts the tokens that go through a model."""

    def __init__(self, model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs: list[int] = []
        forward = model.forward

        def counted(tokens: Tensor, *args: Any) -> Any:
            self.runs.append(len(tokens))
            return forward(tokens, *args)

        monkeypatch.setattr(model, "forward", counted)
        run = NativeDecoding.run

        def counted_step(decoding: NativeDecoding, tokens: Tensor, lengths: Tensor) -> Any:
            self.runs.append(len(tokens))
            return run(decoding, tokens, lengths)

        monkeypatch.setattr(NativeDecoding, "run", counted_step)


@pytest.mark.parametrize("slots", [3, 16])
def test_the_prompt_of_a_group_goes_through_the_model_once(slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder("deepseek-plain")
    counting = Counting(model, monkeypatch)
    found = complete(engine(model, slots), [request(PROMPTS[2], DRAWN, samples=8)])
    assert sum(counting.runs) == len(PROMPTS[2]) + sum(len(c.tokens) - 1 for c in found.values())
    assert len(found) == 8


def test_prompts_share_a_run_up_to_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder("llama-grouped")
    counting = Counting(model, monkeypatch)
    tight = Engine(model, TOKENIZER, seed=0, slots=8, max_length=64, prefill_tokens=20)
    requests = [request(prompt, Sampling(max_new_tokens=5)) for prompt in PROMPTS]  # 7 + 1, 33, 12 + 2, 19, 5 tokens
    complete(tight, requests)
    assert counting.runs[:4] == [8, 2 + 33, 3 + 14, 5 + 19]


def test_a_free_slot_is_filled_in_the_next_step() -> None:
    model = decoder("deepseek-plain")
    own = engine(model, slots=2)
    for length in (2, 6, 6):
        own.submit(request(PROMPTS[0], Sampling(temperature=0.0, max_new_tokens=length)))
    ended = [[completion.request for completion in own.step().finished] for _ in range(8)]
    assert ended == [[], [0], [], [], [], [1], [], [2]]
    assert not own.busy


def test_it_follows_the_weights_of_its_model() -> None:
    model, other = decoder("deepseek-plain"), decoder("deepseek-plain")
    other.init_weights(seed=1)
    own, item = engine(model), request(PROMPTS[0], GREEDY)
    before = complete(own, [item])[0, 0].text
    model.load_state_dict(other.state_dict())
    after = complete(own, [item])[1, 0].text
    assert after == complete(engine(other), [item])[0, 0].text
    assert after != before


def test_every_end_token_ends() -> None:
    model = decoder("llama-grouped")
    free = complete(engine(model), [request(PROMPTS[0], GREEDY)])[0, 0].tokens.tolist()
    assert 2 not in free
    third = free.index(free[3])
    object.__setattr__(model.config, "eos_token_id", (2, free[3]))
    completion = complete(engine(model), [request(PROMPTS[0], GREEDY)])[0, 0]
    assert completion.finish == "end"
    assert completion.tokens.tolist() == free[: third + 1]
    assert completion.text == TOKENIZER.decode(free[:third])


def test_the_limit_ends_exactly_at_the_bound_of_the_cache() -> None:
    sampling = Sampling(temperature=0.0, max_new_tokens=64 - 33)
    completion = complete(engine(decoder("qwen2-tied")), [request(PROMPTS[2], sampling)])[0, 0]
    assert completion.finish == "length"
    assert len(completion.tokens) == 31


def test_a_stop_string_ends_and_is_cut() -> None:
    model = decoder("llama-grouped")
    free = complete(engine(model), [request(PROMPTS[0], GREEDY)])[0, 0]
    stop = free.text[5:8]
    place = free.text.find(stop)
    sampling = Sampling(temperature=0.0, max_new_tokens=20, stop=["never so", stop])
    completion = complete(engine(model), [request(PROMPTS[0], sampling)])[0, 0]
    assert completion.finish == "stop"
    assert completion.text == free.text[:place]
    assert completion.tokens.tolist() == free.tokens.tolist()[: place + 3]


def test_streamed_pieces_make_the_text() -> None:
    model = decoder("llama-grouped")
    free = complete(engine(model), [request(PROMPTS[0], GREEDY)])[0, 0].text
    own = engine(model, slots=3)
    for stop in ([], [free[5:8]], [free[5:7] + "!"]):
        own.submit(request(PROMPTS[0], Sampling(temperature=0.0, max_new_tokens=20, stop=stop)), stream=True)
    own.submit(request(PROMPTS[1], GREEDY))
    texts, tokens = {0: "", 1: "", 2: ""}, {0: [0][:0], 1: [0][:0], 2: [0][:0]}
    finished = {}
    while own.busy:
        step = own.step()
        finished |= {completion.request: completion for completion in step.finished}
        for piece in step.pieces:
            texts[piece.request] += piece.text
            tokens[piece.request].append(piece.token)
            if piece.request == 1:
                assert free[: free.find(free[5:8])].startswith(texts[1]), "gave out a part of the stop string"
    assert texts == {index: finished[index].text for index in range(3)}
    assert tokens == {index: finished[index].tokens.tolist() for index in range(3)}


@pytest.mark.parametrize("after", [0, 1, 4])
def test_a_cancelled_request_frees_its_slots_and_changes_no_other(after: int) -> None:
    model = decoder("deepseek-plain")
    requests = [request(prompt, DRAWN, samples=3) for prompt in PROMPTS[:3]]
    expected = complete(engine(model), requests)
    own = engine(model, slots=4)
    for item in requests:
        own.submit(item)
    found = {}
    for number in range(1000):
        if number == after:
            own.cancel(1)
        step = own.step()
        found |= {(c.request, c.number): c.tokens.tolist() for c in step.finished}
        if not own.busy:
            break
    assert found == {key: c.tokens.tolist() for key, c in expected.items() if key[0] != 1}


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (Request((), 1, GREEDY, "a"), "prompt of 'a': must have at least one token"),
        (Request((5,), 0, GREEDY, "a"), "samples = 0 of 'a': must be at least 1"),
        (Request((5,) * 45, 1, GREEDY, "a"), "must together be at most max_length = 64"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(item: Request, message: str) -> None:
    own = engine(decoder("qwen2-tied"))
    with pytest.raises(InputError, match=message):
        own.submit(item)
    assert not own.busy


def test_an_engine_that_the_model_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="max_length = 257: must be between 1 and the model's max_position_emb"):
        engine(decoder("qwen2-tied"), max_length=257)
    with pytest.raises(InputError, match="a qwen2 model has no experts to record"):
        engine(decoder("qwen2-tied"), experts=True)


def test_nothing_to_do_is_no_step() -> None:
    own = engine(decoder("qwen2-tied"))
    assert list(own.run()) == []
    assert own.step().finished == []


@pytest.mark.parametrize("case", SPARSE[:1])
def test_a_piece_tells_the_likeliest_tokens_where_it_is_asked(case: str) -> None:
    model = decoder(case)
    asked = [Request(tuple(prompt.tolist()), 2, DRAWN, str(at), at or None) for at, prompt in enumerate(PROMPTS[:4])]
    runner = engine(model, slots=5)
    for item in asked:
        runner.submit(item, stream=True)
    pieces: dict[tuple[int, int], list[Piece]] = {}
    done: dict[tuple[int, int], Completion] = {}
    while runner.busy:
        step = runner.step()
        done |= {(completion.request, completion.number): completion for completion in step.finished}
        for piece in step.pieces:
            pieces.setdefault((piece.request, piece.number), []).append(piece)
    for (index, number), told in pieces.items():
        likelihoods = [piece.likelihood for piece in told]
        if index == 0:
            assert likelihoods == [None] * len(told)
            continue
        output = whole_forward(model, asked[index], done[index, number])
        with torch.no_grad():
            expected = model.logits(output.hidden[len(PROMPTS[index]) - 1 :]).log_softmax(-1)
        for piece, likelihood, row in zip(told, likelihoods, expected, strict=True):
            assert likelihood is not None
            assert likelihood.token == pytest.approx(float(row[piece.token]), abs=1e-4)
            assert [value for _, value in likelihood.likeliest] == pytest.approx(row.topk(index)[0].tolist(), abs=1e-4)
            assert [float(row[token]) for token, _ in likelihood.likeliest] == pytest.approx(
                [value for _, value in likelihood.likeliest], abs=1e-4
            )

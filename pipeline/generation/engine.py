"""The rollout engine: from requests to completions, by continuous batching.

Shapes: B live sequences, T tokens of a run, D hidden, V vocabulary.
Different from the textbook: prompts and decoding share a run. One flat forward holds one token of every live sequence
and, behind them, the whole prompts of the sequences that have just got a slot; so a free slot is filled in the next
step, and a prompt costs its tokens and nothing else. A prompt of many samples goes through the model once; its samples
start from copies of its cache rows.
The engine reads the model's weights where they are, and derives nothing from them: train, and the next step follows.
Only what an adapter changes, and in bfloat16 the rounded experts, it makes anew when requests come after an idle time.
"""

import reprlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from pipeline.errors import InputError
from pipeline.generation.graphs import DecodeGraphs
from pipeline.generation.requests import Completion, Finish, Likelihood, Piece, Request
from pipeline.generation.sampler import Options, sample
from pipeline.generation.slots import Job, Slots
from pipeline.generation.text import TextStream, decode
from pipeline.model.adapter import Merged
from pipeline.model.cache import SlotCache
from pipeline.model.decoder import Decoder
from pipeline.model.decoding import NativeDecoding

PREFILL_TOKENS = 8192
"""Prompt tokens that one run takes on; bounds its memory. A longer prompt gets a run of its own."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one step brought: the samples that ended with it, and the pieces of those that are streamed."""

    finished: list[Completion]
    pieces: list[Piece]


@dataclass(frozen=True, slots=True, eq=False)
class _Start:
    """Samples of one job that got rows `first` to `first + count - 1`."""

    job: Job
    first: int
    count: int


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    """What the samples of a job that found no slot yet will start from."""

    rows: tuple[Tensor, ...]
    logits: Tensor  # (V,) after the prompt


class Engine:
    """Completes requests with a model, at most `slots` samples at a time.

        engine = Engine(model, tokenizer, seed=0, slots=256, max_length=512)
        engine.submit(request)
        for completion in engine.run(): ...

    A sample's tokens are the same whatever else is live, up to rounding: the number of rows in a matrix product changes
    its last bits (log-probabilities by up to 1e-5 in float32), so a token can differ where a random number, or a choice
    of experts, falls that near to a boundary; in 24,000 tokens of a small sparse model none did.

    Not for several threads at once. `submit` and `cancel` may be called between any two steps, and while `run` waits
    for its next value to be asked for.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: PreTrainedTokenizerFast,
        *,
        seed: int,
        slots: int,
        max_length: int,
        record_experts: bool = False,
        prefill_tokens: int = PREFILL_TOKENS,
        bfloat16: bool = False,
    ) -> None:
        """`max_length` bounds prompt and completion together, in tokens; the model must be made for so many.

        `bfloat16`: on a CPU products of a float32 model's matrices are computed in it, as in training under that dtype.
        """
        config = model.config
        if not 1 <= max_length <= config.max_position_embeddings:
            raise InputError(
                f"max_length = {max_length}: must be between 1 and the model's "
                f"max_position_embeddings = {config.max_position_embeddings}"
            )
        if record_experts and config.mixture is None:
            raise InputError(f"record_experts: a {config.model_type} model has no experts to record")
        self._merged = Merged(model)
        model = self._merged.decoder
        self._model, self._tokenizer, self._seed = model, tokenizer, seed
        self._device, self._prefill_tokens = model.unembedding.device, prefill_tokens
        self._ends = np.array(sorted(end_tokens(model, tokenizer)), dtype=np.int64)
        mixture = config.mixture if record_experts else None
        experts = None if mixture is None else (len(mixture.layers), mixture.top_k)
        self._slots = Slots(slots, max_length, experts)
        self._cache = SlotCache(config, slots, max_length, model.unembedding.dtype, self._device)
        self._graphs = DecodeGraphs(model, self._cache, slots) if self._device.type == "cuda" else None
        self._bfloat16 = bfloat16
        self._native = NativeDecoding.of(model, self._cache, bfloat16=bfloat16)
        self._waiting: deque[Job] = deque()
        self._kept: dict[int, _Kept] = {}
        self._submitted = 0

    @property
    def max_length(self) -> int:
        return self._cache.max_length

    @property
    def busy(self) -> bool:
        """Whether any sample is live or waiting."""
        return bool(self._waiting) or self._slots.live > 0

    def submit(self, request: Request, *, stream: bool = False) -> int:
        """Queue a request and return its number; `stream` asks for its `Piece`s. Raises InputError if it cannot fit."""
        name = reprlib.repr(request.identity)
        if not request.prompt:
            raise InputError(f"prompt of {name}: must have at least one token")
        if request.samples < 1:
            raise InputError(f"samples = {request.samples} of {name}: must be at least 1")
        needed = len(request.prompt) + request.sampling.max_new_tokens
        if needed > self.max_length:
            raise InputError(
                f"prompt of {len(request.prompt)} tokens and max_new_tokens = {request.sampling.max_new_tokens} of "
                f"{name}: must together be at most max_length = {self.max_length}"
            )
        if not self.busy:
            self._merged.refresh()
            if self._native is not None:
                self._native.refresh()
        self._waiting.append(Job(self._submitted, request, stream))
        self._submitted += 1
        return self._submitted - 1

    def cancel(self, request: int) -> None:
        """Forget a request, waiting, live or done; what of it has not finished never will."""
        self._waiting = deque(job for job in self._waiting if job.index != request)
        self._kept.pop(request, None)
        self._free([row for row in range(self._slots.live) if self._job(row).index == request])

    def run(self) -> Iterator[Completion]:
        """Completions in the order in which they end, until nothing is live or waiting."""
        while self.busy:
            yield from self.step().finished

    @torch.inference_mode()
    def step(self) -> Step:
        """One token for every sequence that is live or finds a free slot."""
        starts = self._schedule()
        if not self._slots.live:
            return Step([], [])
        logits = self._run(starts)
        return self._collect(logits)

    # ------------------------------------------------------------ schedule

    def _schedule(self) -> list[_Start]:
        """Give free slots to waiting samples, first come, first served, within the token budget for prompts."""
        slots, budget = self._slots, self._prefill_tokens
        starts: list[_Start] = []
        while self._waiting and slots.live < slots.count:
            job = self._waiting[0]
            tokens = 0 if job.index in self._kept else len(job.request.prompt)
            if starts and tokens > budget:
                break
            budget -= tokens
            count = min(job.waiting, slots.count - slots.live)
            starts.append(_Start(job, slots.live, count))
            slots.start(job, count, self._seed, [self._stream(job) for _ in range(count)])
            if not job.waiting:
                self._waiting.popleft()
        return starts

    def _stream(self, job: Job) -> TextStream | None:
        stops = job.request.sampling.stop
        return TextStream(self._tokenizer, stops) if stops or job.streamed else None

    # ------------------------------------------------------------ run

    def _run(self, starts: list[_Start]) -> Tensor:
        """Everything that is due through the model; logits (B, V) of each live sequence's next token."""
        decoding = starts[0].first if starts else self._slots.live
        fresh = [start for start in starts if start.job.index not in self._kept]
        logits = self._forward(decoding, fresh)
        return self._share(logits, decoding, starts) if starts else logits

    def _forward(self, decoding: int, fresh: list[_Start]) -> Tensor:
        """Logits (decoding + len(fresh), V) after one more token of each decoding sequence and each fresh prompt."""
        if not decoding and not fresh:
            return self._model.unembedding.new_empty(0, self._model.config.vocab_size)
        slots, prompts = self._slots, [start.job.request.prompt for start in fresh]
        tokens, held = (torch.from_numpy(column[:decoding]) for column in (slots.last, slots.held))
        if self._native is not None and not fresh:
            logits, chosen = self._native.run(tokens, held)
            self._record(chosen.unbind(), decoding, fresh)
            return logits
        longest = int(held.max()) if decoding else 0
        if self._graphs is not None and not fresh:
            output = self._graphs.run(tokens, held, longest)
        else:
            new = torch.tensor([token for prompt in prompts for token in prompt], dtype=torch.int64)
            rows = [(start.first, len(prompt)) for start, prompt in zip(fresh, prompts, strict=True)]
            positions = self._cache.begin(held.to(self._device), longest, rows)
            with torch.autocast("cpu", torch.bfloat16, enabled=self._bfloat16):
                output = self._model(torch.cat((tokens, new)).to(self._device), positions, self._cache)
        self._record([routing.experts for routing in output.routing], decoding, fresh)
        hidden = output.hidden
        if fresh:
            lengths = torch.tensor([1] * decoding + [len(prompt) for prompt in prompts])
            hidden = hidden[(lengths.cumsum(0) - 1).to(self._device)]  # of each sequence's last token
        return self._model.logits(hidden)

    def _record(self, experts: Sequence[Tensor], decoding: int, fresh: list[_Start]) -> None:
        """Note the experts (T, k) of each mixture layer that the run's tokens chose, if that is asked for."""
        slots = self._slots
        if slots.experts is None:
            return
        chosen = torch.stack(list(experts), dim=1).to(torch.int16).cpu().numpy()
        slots.experts[np.arange(decoding), slots.written[:decoding] - 1] = chosen[:decoding]
        at = decoding
        for start in fresh:
            length = len(start.job.request.prompt)
            start.job.experts = chosen[at : at + length].copy()
            at += length

    def _share(self, logits: Tensor, decoding: int, starts: list[_Start]) -> Tensor:
        """Give every sample what its prompt left, cache rows and logits; from logits of `_forward` to (B, V)."""
        source = list(range(decoding))
        sources: list[int] = []
        targets: list[int] = []
        longest = 0
        fresh = decoding
        for start in starts:
            kept = self._kept.get(start.job.index)
            if kept is not None:
                self._cache.write(slice(start.first, start.first + start.count), kept.rows)
                source += [len(logits)] * start.count
                logits = torch.cat((logits, kept.logits[None]))
            else:
                length = len(start.job.request.prompt)
                sources += [start.first] * (start.count - 1)
                targets += range(start.first + 1, start.first + start.count)
                longest = max(longest, length)
                source += [fresh] * start.count
                if start.job.waiting:
                    self._kept[start.job.index] = _Kept(self._cache.read(start.first, length), logits[fresh])
                fresh += 1
            if not start.job.waiting:
                self._kept.pop(start.job.index, None)
        if targets:
            self._cache.copy(sources, targets, longest)
        return logits[torch.tensor(source, device=self._device)]

    # ------------------------------------------------------------ collect

    def _collect(self, logits: Tensor) -> Step:
        """Draw the next tokens, and free the slots of the samples that end with them."""
        slots, live = self._slots, self._slots.live
        options, uniform = torch.from_numpy(slots.options[:, :live]), torch.from_numpy(slots.uniforms())
        cut = torch.from_numpy(slots.cut[:live])
        drawn = sample(logits, uniform.to(self._device), Options.of(options.to(self._device)), cut)
        tokens, log_probabilities = (column.cpu().numpy() for column in drawn)
        slots.write(tokens, log_probabilities)
        ended = (tokens[:, None] == self._ends).any(1)
        over = slots.written[:live] == slots.limit[:live]
        stopped = np.zeros(live, dtype=np.bool_)
        streams = [(row, stream) for row, stream in enumerate(slots.streams[:live]) if stream is not None]
        for row, stream in streams:
            if not ended[row]:
                stream.push(int(tokens[row]))
                stopped[row] = stream.stopped
        finished = {}
        for row in np.flatnonzero(ended | over | stopped).tolist():
            finish: Finish = "end" if ended[row] else "stop" if stopped[row] else "length"
            finished[row] = self._completion(row, finish)
        streamed = [row for row, _ in streams if self._job(row).streamed]
        likelihoods = self._likelihoods(logits, [row for row in streamed if self._alternatives(row) is not None])
        pieces = [self._piece(row, finished.get(row), likelihoods.get(row)) for row in streamed]
        self._free(list(finished))
        return Step(list(finished.values()), pieces)

    def _completion(self, row: int, finish: Finish) -> Completion:
        slots, job, stream = self._slots, self._job(row), self._slots.streams[row]
        written = int(slots.written[row])
        tokens = slots.tokens[row, :written].copy()
        if finish == "stop":
            assert stream is not None
            text = stream.text
        else:
            text = decode(self._tokenizer, tokens[: written - (finish == "end")].tolist())
        experts = None
        if slots.experts is not None:
            assert job.experts is not None
            experts = np.concatenate((job.experts, slots.experts[row, : written - 1]))
        log_probabilities = slots.log_probabilities[row, :written].copy()
        return Completion(job.index, int(slots.number[row]), tokens, log_probabilities, text, finish, experts)

    def _alternatives(self, row: int) -> int | None:
        return self._job(row).request.alternatives

    def _likelihoods(self, logits: Tensor, rows: list[int]) -> dict[int, Likelihood]:
        """Of the tokens that `rows` have just drawn from logits (B, V)."""
        if not rows:
            return {}
        log_probabilities = logits[rows].float().log_softmax(-1)
        most = min(max(self._alternatives(row) or 0 for row in rows), logits.shape[1])
        values, tokens = (part.tolist() for part in log_probabilities.topk(most))
        drawn = log_probabilities.gather(1, torch.from_numpy(self._slots.last[rows])[:, None].to(self._device))
        return {
            row: Likelihood(own, tuple(zip(tokens[at], values[at], strict=True))[: self._alternatives(row)])
            for at, (row, own) in enumerate(zip(rows, drawn[:, 0].tolist(), strict=True))
        }

    def _piece(self, row: int, completion: Completion | None, likelihood: Likelihood | None) -> Piece:
        stream = self._slots.streams[row]
        assert stream is not None
        text = stream.take() if completion is None else stream.take_rest(completion.text)
        return Piece(self._job(row).index, int(self._slots.number[row]), int(self._slots.last[row]), text, likelihood)

    def _free(self, rows: list[int]) -> None:
        longest = int(self._slots.held.max(initial=0))
        sources, targets = self._slots.drop(rows)
        if sources:
            self._cache.copy(sources, targets, longest)

    def _job(self, row: int) -> Job:
        job = self._slots.jobs[row]
        assert job is not None, f"slot {row} is free"
        return job


def end_tokens(model: Decoder, tokenizer: PreTrainedTokenizerFast) -> set[int]:
    """The tokens that end a completion: the tokenizer's, and those of the model's configuration."""
    configured = model.config.eos_token_id
    ends = {tokenizer.eos_token_id, *(configured if isinstance(configured, tuple) else (configured,))}
    return {token for token in ends if token is not None}

"""A reward model: a decoder with a head that gives a whole text one score, its preference.

On disk it is a plain Hugging Face checkpoint, `<Architecture>ForSequenceClassification` with one label, which
AutoModelForSequenceClassification loads as it is; `reward.json` beside it says what is put before it and how scores are
spread. The score is read at a text's last token, the end of sequence.
Different from the textbook: what is asked for outside training is a reward between 0 and 1, σ((score − mean) / std),
with mean and std over the answers of its own training. Only differences of raw scores have a meaning; bounded and
centred, they stand beside rewards that are 0 or 1, and past the answers of training more of the same hardly gains any
more (Fu et al. 2025, “Reward Shaping to Mitigate Reward Hacking in RLHF”, arXiv 2502.18770).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from pipeline import chat
from pipeline.errors import InputError
from pipeline.files import atomic_folder, write_json
from pipeline.model.adapter import Merged
from pipeline.model.attention import PackedSequences
from pipeline.model.checkpoint import disk_tensors, take_memory
from pipeline.model.config import ModelConfig
from pipeline.model.decoder import Decoder, Output
from pipeline.model.layers import Linear

WEIGHTS, CONFIG, SCALE = "model.safetensors", "config.json", "reward.json"
RUN_TOKENS = 8_192
"""Tokens that are scored at once; bounds memory."""


@dataclass(frozen=True, slots=True)
class Scale:
    """What a reward model judges, and how the scores of its training's answers are spread."""

    judges: Literal["answer", "output"]  # the final answer alone (R1: helpfulness) or all (R1: harmlessness)
    mean: float
    std: float


class RewardModel(nn.Module):
    """A decoder without an unembedding, and the head (1, D)."""

    def __init__(self, config: ModelConfig, scale: Scale) -> None:
        """Weights are unset. A config whose embeddings are not tied loses what would be untied, the unembedding."""
        super().__init__()
        self.decoder = Decoder(replace(config, tie_word_embeddings=True))
        self.score = Linear(config.hidden_size, 1, bias=False)
        self.scale = scale

    @classmethod
    def on(cls, decoder: Decoder, judges: Literal["answer", "output"], seed: int) -> Self:
        """A head with random weights on a language model, which becomes part of it: it is not copied."""
        with torch.device("meta"):
            model = cls(decoder.config, Scale(judges, mean=0.0, std=1.0))
        state = {name: tensor for name, tensor in decoder.state_dict().items() if not name.startswith("lm_head")}
        model.decoder.load_state_dict(state, assign=True)
        weight = torch.empty(1, decoder.config.hidden_size)
        weight.normal_(0.0, decoder.config.initializer_range, generator=torch.Generator().manual_seed(seed))
        model.score.weight = nn.Parameter(weight.to(decoder.unembedding))
        return model

    def forward(self, tokens: Tensor, positions: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Output]:
        """Texts of `lengths` end to end as tokens and positions (T,) int64 -> scores (S,) float32, what they are of."""
        output = self.decoder(tokens, positions, PackedSequences(lengths))
        last = torch.tensor(lengths, device=tokens.device).cumsum(0) - 1
        return self.score(output.hidden[last]).squeeze(1).float(), output

    def text(self, prompt: str, completion: str, *, bos: str, eos: str) -> str | None:
        """What is put before the model, None for a completion that has no answer to judge.

        An answer is judged as if it came without any thinking, however it was thought of.
        """
        before = chat.render_prompt(prompt, bos=bos)
        if self.scale.judges == "output":
            return before + completion.removesuffix(eos) + eos
        parsed = chat.parse_completion(completion, eos=eos)
        return before + chat.render_completion("", parsed.answer, eos=eos) if parsed.well_formed else None

    def scores(self, tokenizer: PreTrainedTokenizerFast, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """The reward between 0 and 1 of each (prompt, completion); 0 where there is no answer to judge."""
        bos, eos = tokenizer.bos_token or "", tokenizer.eos_token or ""
        texts = [self.text(*pair, bos=bos, eos=eos) for pair in pairs]
        known = dict.fromkeys(text for text in texts if text is not None)
        encodings = tokenizer.backend_tokenizer.encode_batch_fast(list(known), add_special_tokens=False)
        raw = self.raw_scores([np.asarray(encoding.ids, dtype=np.int64) for encoding in encodings])
        rewards = torch.sigmoid((raw.double() - self.scale.mean) / self.scale.std).tolist()
        by_text = dict(zip(known, rewards, strict=True))
        return [0.0 if text is None else by_text[text] for text in texts]

    @torch.no_grad()
    def raw_scores(self, texts: Sequence[np.ndarray]) -> Tensor:
        """Scores (S,) float32, on the CPU, of texts as tokens (n,) int64 each, whatever stands beside them."""
        scores = torch.empty(len(texts))
        device = self.score.weight.device
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        while order:
            run: list[int] = []
            size = 0
            while order and (not run or size + len(texts[order[-1]]) <= RUN_TOKENS):
                run.append(order.pop())
                size += len(texts[run[-1]])
            tokens = torch.from_numpy(np.concatenate([texts[index] for index in run]))
            lengths = [len(texts[index]) for index in run]
            positions = torch.cat([torch.arange(length) for length in lengths])
            scores[run] = self(tokens.to(device), positions.to(device), lengths)[0].cpu()
        return scores


def save_reward(model: RewardModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a checkpoint folder whole, in place of what was there; the tokenizer only says what padding is."""
    config = model.decoder.config.to_hf()
    [architecture] = config["architectures"]
    config |= {
        "architectures": [architecture.replace("ForCausalLM", "ForSequenceClassification")],
        "dtype": str(model.score.weight.dtype).removeprefix("torch."),
        "id2label": {"0": "LABEL_0"},  # one label
        "label2id": {"LABEL_0": 0},
        "pad_token_id": tokenizer.pad_token_id,  # by which transformers finds a padded text's last token
    }
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in _tensors(model).items()}
    with atomic_folder(folder) as temporary:
        write_json(temporary / CONFIG, config)
        write_json(temporary / SCALE, asdict(model.scale))
        save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})


@torch.no_grad()
def load_reward(folder: Path | str, device: torch.device | str = "cpu") -> RewardModel:
    """Read what `save_reward` wrote; raises InputError that names the file and what is wrong with it."""
    folder = Path(folder)
    try:
        raw, scale = (json.loads((folder / name).read_text(encoding="utf-8")) for name in (CONFIG, SCALE))
        given = load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{folder}: is not a reward model of stage preference: {error}") from error
    with torch.device("meta"):
        model = RewardModel(ModelConfig.from_hf(raw), Scale(**scale))
    take_memory(model, device)
    slots = _tensors(model)
    shapes, expected = ({name: tuple(tensor.shape) for name, tensor in part.items()} for part in (given, slots))
    if shapes != expected:
        different = sorted(name for name in {*shapes, *expected} if shapes.get(name) != expected.get(name))
        raise InputError(f"{folder / WEIGHTS}: {different[:5]}: must be as its {CONFIG} says: {len(different)} are not")
    for name, slot in slots.items():
        slot.copy_(given[name])
    return model


def _tensors(model: RewardModel) -> dict[str, Tensor]:
    """Every tensor of the checkpoint under its name on disk."""
    return disk_tensors(Merged(model.decoder).decoder) | {"score.weight": model.score.weight}

"""What a model starts from: weights trained here on generated text, or a checkpoint pinned by its digest."""

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from pipeline import chat
from pipeline.generated.corpus import documents
from pipeline.job import UNMETERED, Log, Meter
from pipeline.model.checkpoint import load_model
from pipeline.model.config import ModelConfig
from pipeline.model.decoder import Decoder
from pipeline.model.remote import fetch
from pipeline.model.tokenizer import character_tokenizer, load_tokenizer
from pipeline.params import Base, Checkpoint, Pretrain
from pipeline.training.examples import text_examples
from pipeline.training.loop import train


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """A model to begin with, and what its training was like."""

    model: Decoder
    tokenizer: PreTrainedTokenizerFast
    figures: dict[str, float]  # loss and tokens; empty for a checkpoint


def obtain(
    base: Base, *, seed: int, held_out: float, scratch: Path, log: Log, title: str, meter: Meter = UNMETERED
) -> Start:
    """Train the model that `base` describes, or bring its checkpoint here; either with this recipe's chat template.

    `scratch` must be this work's own: an interrupted training or download goes on from what lies there. `held_out` is
    the share of the prompts that no text may have.
    """
    if isinstance(base, Checkpoint):
        return _take(base, scratch)
    return _pretrain(base, seed, held_out, scratch, log, title, meter)


def _pretrain(base: Pretrain, seed: int, held_out: float, scratch: Path, log: Log, title: str, meter: Meter) -> Start:
    tokenizer = character_tokenizer(chat.CHAT_TEMPLATE)
    model = Decoder(ModelConfig.from_hf({**base.model, "vocab_size": len(tokenizer)}))
    model.init_weights(seed)
    examples = text_examples(tokenizer, documents(base.corpus, seed, held_out))
    summary = train(model, examples, base.train, seed=seed, scratch=scratch, log=log, title=title, meter=meter)
    return Start(model, tokenizer, {"loss": summary.loss, "tokens": summary.tokens})


def _take(base: Checkpoint, scratch: Path) -> Start:
    source = fetch(base.source, base.revision, base.digest, scratch / "checkpoint")
    model, tokenizer = load_model(source), load_tokenizer(source)
    tokenizer.chat_template = chat.CHAT_TEMPLATE
    return Start(model, tokenizer, {})

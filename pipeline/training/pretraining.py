"""What a model starts from: weights trained here on a corpus, or a checkpoint pinned by its digest."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from pipeline import chat
from pipeline.generated.corpus import documents
from pipeline.job import UNMETERED, Log, Meter
from pipeline.model.checkpoint import load_model
from pipeline.model.config import ModelConfig
from pipeline.model.decoder import Decoder
from pipeline.model.device import stage_device
from pipeline.model.remote import fetch
from pipeline.model.tokenizer import byte_pair_tokenizer, character_tokenizer, load_tokenizer
from pipeline.params import Base, BytePairTokens, Checkpoint, CuratedCorpus, Distributed, Pretrain, Tokens
from pipeline.training.curated import ReadCurated, curated_documents
from pipeline.training.engine import ONE
from pipeline.training.examples import text_examples
from pipeline.training.loop import train
from pipeline.training.memory import prepare
from pipeline.world import led


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """A model to begin with, and what its training was like."""

    model: Decoder
    tokenizer: PreTrainedTokenizerFast
    figures: dict[str, float]  # loss and tokens; empty for a checkpoint


def obtain(
    base: Base,
    *,
    seed: int,
    held_out: float,
    curated: ReadCurated,
    scratch: Path,
    log: Log,
    title: str,
    meter: Meter = UNMETERED,
    distributed: Distributed = ONE,
) -> Start:
    """Train the model that `base` describes, or bring its checkpoint here; either with this recipe's chat template.

    `scratch` must be this work's own: an interrupted training or download goes on from what lies there. `held_out` is
    the share of the prompts that no generated text may have. `curated` is read where the corpus is curation's.
    """
    if isinstance(base, Checkpoint):
        return _take(base, scratch)
    if isinstance(base.corpus, CuratedCorpus):
        texts = list(curated_documents(base.corpus, *curated(), seed))
    else:
        texts = list(documents(base.corpus, seed, held_out))
    return _pretrain(base, texts, seed, scratch, log, title, meter, distributed)


def _pretrain(
    base: Pretrain,
    texts: Sequence[str],
    seed: int,
    scratch: Path,
    log: Log,
    title: str,
    meter: Meter,
    distributed: Distributed,
) -> Start:
    tokenizer = _tokenizer(base.tokenizer, texts)
    model = Decoder(ModelConfig.from_hf({**base.model, "vocab_size": len(tokenizer)}))
    model.init_weights(seed)
    model.to(stage_device())
    prepare(model, base.train, seed)
    examples = text_examples(tokenizer, texts, model.config.max_position_embeddings)
    summary = train(
        model,
        examples,
        base.train,
        seed=seed,
        scratch=scratch,
        log=log,
        title=title,
        meter=meter,
        distributed=distributed,
    )
    return Start(model, tokenizer, {"loss": summary.loss, "tokens": summary.tokens})


def _tokenizer(tokens: Tokens, texts: Sequence[str]) -> PreTrainedTokenizerFast:
    if isinstance(tokens, BytePairTokens):
        return byte_pair_tokenizer(chat.CHAT_TEMPLATE, texts, tokens.vocabulary)
    return character_tokenizer(chat.CHAT_TEMPLATE)


def _take(base: Checkpoint, scratch: Path) -> Start:
    source = led(fetch)(base.source, base.revision, base.digest, scratch / "checkpoint")
    model, tokenizer = load_model(source, device=stage_device()), load_tokenizer(source)
    tokenizer.chat_template = chat.CHAT_TEMPLATE
    return Start(model, tokenizer, {})

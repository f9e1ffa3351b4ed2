"""base: the model that everything starts from. Trained here from scratch, or a checkpoint pinned by its digest."""

from pipeline import chat
from pipeline.files import atomic_folder
from pipeline.generated.corpus import documents
from pipeline.job import Job
from pipeline.model.checkpoint import load_model, save_model
from pipeline.model.config import ModelConfig
from pipeline.model.decoder import Decoder
from pipeline.model.remote import fetch
from pipeline.model.tokenizer import character_tokenizer, load_tokenizer, save_tokenizer
from pipeline.params import Checkpoint, Params, Pretrain
from pipeline.training.examples import text_examples
from pipeline.training.loop import train


def run(params: Params, job: Job) -> dict[str, float]:
    if isinstance(params.base, Checkpoint):
        return _take(params.base, job)
    return _pretrain(params.base, params, job)


def _pretrain(base: Pretrain, params: Params, job: Job) -> dict[str, float]:
    tokenizer = character_tokenizer(chat.CHAT_TEMPLATE)
    model = Decoder(ModelConfig.from_hf({**base.model, "vocab_size": len(tokenizer)}))
    model.init_weights(params.seed)
    examples = text_examples(tokenizer, documents(base.corpus, params.seed, params.held_out))
    summary = train(
        model,
        examples,
        base.train,
        seed=params.seed,
        scratch=job.scratch,
        log=job.log,
        meter=job.meter,
        title="base: pre-training",
    )
    with atomic_folder(job.output("model")) as folder:
        save_model(model, folder)
        save_tokenizer(tokenizer, folder)
    return {"loss": summary.loss, "tokens": summary.tokens, **model.size().figures()}


def _take(base: Checkpoint, job: Job) -> dict[str, float]:
    source = fetch(base.source, base.revision, base.digest, job.scratch / "checkpoint")
    model, tokenizer = load_model(source), load_tokenizer(source)
    tokenizer.chat_template = chat.CHAT_TEMPLATE
    with atomic_folder(job.output("model")) as folder:
        save_model(model, folder)
        save_tokenizer(tokenizer, folder)
    return model.size().figures()

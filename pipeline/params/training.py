"""Options of supervised training: the optimiser that every training shares, the base, the fine-tunings."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from pipeline.params.section import Count, Digest, NonNegative, Positive, Section, Share

Projection = Literal[
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "q_a_proj",
    "q_b_proj",
    "kv_a_proj_with_mqa",
    "kv_b_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
]


class Adapter(Section):
    """Changes of low rank to a model whose own weights, routers and balancing biases stay (LoRA, arXiv 2106.09685)."""

    rank: Count
    alpha: Positive  # the change is alpha / rank · B · A
    # Projections of attention and of dense and shared feed-forwards by their names in checkpoints; `experts`: all
    # matrices of the routed experts.
    targets: Annotated[list[Projection | Literal["experts"]], Field(min_length=1)]

    @model_validator(mode="after")
    def _gate_goes_with_up(self) -> "Adapter":
        if len({"gate_proj", "up_proj"} & set(self.targets)) == 1:
            raise ValueError("targets: must name both gate_proj and up_proj or neither: they are one matrix in memory")
        return self


class Optimisation(Section):
    """Options of every loop that trains: the optimiser's, and how its steps are cut and kept."""

    steps: Count
    micro_batch_tokens: Count = 16_384  # at most at once through the model; bounds memory, does not change the result
    learning_rate: Positive
    warmup: Share = 0.05  # of the steps
    final_learning_rate: Share = 0.1  # of `learning_rate`, reached by a cosine
    weight_decay: NonNegative = 0.0
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    gradient_clip: Positive = 1.0
    balance_rate: NonNegative = 0.001  # update of the routers' balancing bias, per update of the weights
    balance_loss: NonNegative = 1e-4
    dtype: Literal["float32", "bfloat16"] = "float32"  # of what products multiply; weights and sums are float32
    checkpoint_every: Count = 100  # steps
    checkpoint_activations: bool = False  # compute each block again in the backward pass: less memory, same result
    adapter: Adapter | None = None  # None: all weights learn


class Training(Optimisation):
    """Options of the supervised training loop."""

    tokens_per_step: Count  # of all kinds, on average; the loss is normalised by those that count


class GeneratedCorpus(Section):
    """Generated problems with terse and with worked answers."""

    kind: Literal["generated"] = "generated"
    documents: Count
    worked: Share  # of the documents show the work; the others only the answer
    families: Annotated[dict[str, Positive], Field(min_length=1)]


class CuratedCorpus(Section):
    """Curation's problems of the train split, again and again, with terse and with worked answers."""

    kind: Literal["curated"]
    documents: (
        Count  # above the number of problems each comes several times, terse in some of them and worked in others
    )
    worked: Share  # of the documents show the work, where there is any; the others only the answer


class CharacterTokens(Section):
    """One token per printable ASCII character; every other character is lost."""

    kind: Literal["characters"] = "characters"


class BytePairTokens(Section):
    """A byte-level byte-pair vocabulary trained on the corpus; every text comes back as it was."""

    kind: Literal["byte_pair"]
    vocabulary: Annotated[int, Field(ge=266)]  # tokens; ten markers and the 256 bytes are the least


def _kind(default: str) -> Discriminator:
    """Tells the kinds of a section apart by its `kind`, which may be left out."""
    return Discriminator(
        lambda section: section.get("kind", default) if isinstance(section, dict) else getattr(section, "kind", None)
    )


Corpus = Annotated[
    Annotated[GeneratedCorpus, Tag("generated")] | Annotated[CuratedCorpus, Tag("curated")], _kind("generated")
]
"""The text that a base model is trained on from scratch."""

Tokens = Annotated[
    Annotated[CharacterTokens, Tag("characters")] | Annotated[BytePairTokens, Tag("byte_pair")], _kind("characters")
]
"""The tokenizer of a base model that is trained from scratch."""


class Pretrain(Section):
    kind: Literal["pretrain"]
    model: dict[str, Any]  # a Hugging Face config.json; the vocabulary comes from the tokenizer
    tokenizer: Tokens = CharacterTokens()
    corpus: Corpus
    train: Training

    @model_validator(mode="after")
    def _learns_whole(self) -> "Pretrain":
        if self.train.adapter is not None:
            raise ValueError("train.adapter: must be null: a model trained from scratch has no weights to be kept")
        return self


class Checkpoint(Section):
    kind: Literal["checkpoint"]
    source: str  # a folder, s3://bucket/prefix, or a hub id
    digest: Digest  # over the checkpoint's files, as `r1flow digest` prints it
    revision: str | None = None


Base = Annotated[Pretrain | Checkpoint, Field(discriminator="kind")]


class ColdStart(Section):
    examples: Count  # worked traces to train on; few and good
    train: Training


class GeneralSFT(Section):
    """Dev3: from the base model again, on the set that rejection sampling made; R1: 2 epochs."""

    train: Training

"""Put one question to a model of this project."""

from pathlib import Path

from pipeline import chat
from pipeline.errors import InputError
from pipeline.evaluation.models import ORDER, STUDENTS
from pipeline.generation.generate import generate
from pipeline.model.checkpoint import load_model
from pipeline.model.tokenizer import load_tokenizer
from pipeline.params import Params


def ask(question: str, folder: Path, params: Params) -> chat.Completion:
    """The model's completion, sampled as the evaluation does."""
    if any(marker in question for marker in chat.MARKERS):
        raise InputError(f"{question!r}: must not contain any of {' '.join(chat.MARKERS)}")
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    prompt = chat.render_prompt(question)
    options = params.evaluation.sampling
    [[sample]] = generate(model, tokenizer, [prompt], options, samples=1, seed=params.seed, title="thinking")
    return chat.parse_completion(sample.text)


def last_model(root: Path) -> Path:
    """The folder of the last model that the recipe has made. Raises InputError where there is none."""
    folders = [root / "artifacts" / stage / "model" for stage in ORDER if stage != STUDENTS]
    for folder in folders:
        if folder.is_dir():
            return folder
    raise InputError(f"{root / 'artifacts'}: no model yet; make one with `r1flow run`, or name one with --model")

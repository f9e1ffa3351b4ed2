"""A project with a registry of tiny models that were taught one answer each, and a server that follows the champion."""

import json
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
import torch
from mlflow import MlflowClient

from pipeline import chat
from pipeline.model.attention import PackedSequences
from pipeline.model.config import ModelConfig
from pipeline.model.decoder import Decoder
from pipeline.model.tokenizer import character_tokenizer
from pipeline.params import Sampling, Tracking
from pipeline.promotion.ledger import Entry, Ledger
from pipeline.records import Problem, schema, write_table
from pipeline.release.export import export
from pipeline.release.record import write_checksums
from pipeline.tracking import Aliases, Submission, Version, register
from pipeline.tracking.store import store_file
from pipeline.training.loss import token_log_probabilities
from tests.project import PARAMS
from tests.unit.serving.toys import R1FLOW, ROOT, Server

MODEL = "r1flow-general_rl"
DATA = ("artifacts/curation/problems.parquet", "e" * 64)
PROMPTS = [f"{n}+1=?" for n in range(12)]
DENSE = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}


def taught(thinking: str, answer: str, config: dict[str, Any] = DENSE) -> Decoder:
    """A model that says this, whatever it is asked."""
    tokenizer = character_tokenizer(chat.CHAT_TEMPLATE)
    model = Decoder(ModelConfig.from_hf({**config, "vocab_size": len(tokenizer)}))
    model.init_weights(0)
    said = tokenizer.encode(chat.render_completion(thinking, answer), add_special_tokens=False)
    texts = [tokenizer.encode(chat.render_prompt(one), add_special_tokens=False) + said for one in PROMPTS]
    tokens = torch.tensor([token for text in texts for token in text])
    positions = torch.cat([torch.arange(len(text)) for text in texts])
    ends = torch.tensor([len(text) for text in texts]).cumsum(0).tolist()
    targets = torch.tensor([place for end in ends for place in range(end - len(said), end)])
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(300):
        optimiser.zero_grad()
        hidden = model(tokens, positions, PackedSequences([len(text) for text in texts])).hidden
        scores, _ = token_log_probabilities(hidden, model.unembedding, targets - 1, tokens[targets], 1.0)
        loss = -scores.mean()
        loss.backward()
        optimiser.step()
        if loss.item() < 5e-3:
            break
    assert loss.item() < 0.05
    return model


def noted(folder: Path) -> None:
    """Other bytes, so another release, of the same model."""
    (folder / "note").write_text("another")


@cache
def new_store() -> bytes:
    """MLflow's database before anything was kept in it: to make one takes seconds."""
    with tempfile.TemporaryDirectory() as folder:
        MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()
        return (Path(folder) / "mlflow.db").read_bytes()


class Project:
    """`follow` as params.machine.serving.follow."""

    def __init__(self, root: Path, uri: str | None = None, **follow: Any) -> None:
        self.root, self.tracking = root, Tracking(uri=uri)
        root.mkdir(parents=True, exist_ok=True)
        self.options = {"every_seconds": 0.5, "problems": 8, "shadow": 1.0, "shadow_seconds": 1.0} | follow
        serving = {"slots": 8, "follow": self.options}
        tracking = {"uri": uri}
        (root / "params.yaml").write_text(
            PARAMS.replace("machine: {retries: 1}", f"machine: {{serving: {json.dumps(serving)}}}")
            + f"tracking: {json.dumps(tracking)}\n"
        )
        (root / "dvc.yaml").write_text("stages: {}\n")
        problems = [
            Problem(f"{n:04}", "made", "sum", prompt, "7", "numeric", "", None, "evaluation")
            for n, prompt in enumerate(PROMPTS)
        ]
        write_table(pl.DataFrame(problems, schema=schema(Problem)), root / DATA[0])
        if uri is None:
            store_file(root).parent.mkdir(parents=True)
            store_file(root).write_bytes(new_store())
        self.aliases = Aliases(self.tracking, root)
        self.digests: dict[int, str] = {}

    def release(self, model: Decoder, change: Callable[[Path], None] = lambda folder: None) -> Version:
        """Register a model; `change` does something to its files before they get their checksums."""
        folder = self.root / "releases" / f"{len(self.digests)}"
        export(model, character_tokenizer(chat.CHAT_TEMPLATE), Sampling(temperature=0, max_new_tokens=40), folder)
        change(folder)
        digest, _ = write_checksums(folder)
        submission = Submission(
            model=MODEL,
            title="Releases",
            name="general_rl",
            digest=digest,
            folder=folder,
            description="A model.",
            tags={"kind": "teacher"},
            metrics={"pass_at_1": 0.5},
            data=DATA,
            inputs=dict([DATA]),
            work=dict,
        )
        [made] = register(self.tracking, self.root, [submission], "first")
        self.digests[made.version] = digest
        return self.aliases.version(MODEL, made.version)

    def stored(self, version: Version) -> Path:
        """The folder of its files in MLflow's store."""
        [found] = (self.root / "runs" / "mlflow" / "artifacts").rglob(f"{version.source.removeprefix('models:/')}")
        return next(found.rglob("release"))

    def serve(self) -> "Following":
        return Following(self)

    def ledger(self) -> list[Entry]:
        place = Path(self.root / "runs" / "ledger")
        return Ledger.at(self.root, str(place)).entries() if place.is_dir() else []

    def kinds(self) -> list[tuple[str, int]]:
        return [(entry.event.kind, entry.event.after.version) for entry in self.ledger()]

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([*R1FLOW, *arguments], cwd=self.root, capture_output=True, text=True, timeout=120)


class Following(Server):
    """`r1flow serve` without a model."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.log = (project.root / "log").open("w+")
        environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [*R1FLOW, "serve", "--port", "0"],
            cwd=project.root,
            env=environment | {"HOME": str(project.root)},
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )
        self.name = MODEL
        self.address = self._find(r"health at (http://\S+)/health/ready")
        self.port = int(self.address.rpartition(":")[2])
        self._find("answers at")

    def version(self) -> int:
        """Of the model that answers."""
        [model] = self.client().models.list().data
        return next(number for number, digest in self.project.digests.items() if digest == model.version)

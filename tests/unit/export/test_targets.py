"""What is written for other servers is run, with stand-ins for them that say what they were given."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipeline import chat
from pipeline.errors import InputError
from pipeline.export.targets import export
from pipeline.job import read_yaml
from pipeline.model.config import ModelConfig
from pipeline.model.decoder import Decoder
from pipeline.model.tokenizer import character_tokenizer
from pipeline.params import Sampling
from pipeline.release.export import export as write_release
from pipeline.release.record import Record, Release, release_folder, write_checksums
from tests.unit.serving.toys import SPARSE

SAY = '#!/bin/sh\nfor word in "$@"; do echo "$word"; done\n'
CONVERTER = """
import json, sys
import gguf
class Model:
    hparams = {"kv_lora_rank": 16, "q_lora_rank": None}
    def __init__(self): self.gguf_writer = gguf.Writer()
    def set_vocab(self): raise NotImplementedError("BPE pre-tokenizer was not recognized")
def get_model_class(name): return Model
def main():
    model = get_model_class("DeepseekV3ForCausalLM")()
    model.set_vocab()
    out = sys.argv[sys.argv.index("--outfile") + 1]
    open(out, "w").write(json.dumps(model.gguf_writer.written | {"arguments": sys.argv[1:]}))
"""
GGUF = """
class TokenType: NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
class Writer:
    def __init__(self): self.written = {}
    def __getattr__(self, name): return lambda value: self.written.update({name: value})
class SpecialVocab:
    def __init__(self, folder, load_merges): pass
    def add_to_gguf(self, writer): pass
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a teacher and the teacher in int8."""
    root = tmp_path_factory.mktemp("project")
    tokenizer = character_tokenizer(chat.CHAT_TEMPLATE)
    model = Decoder(ModelConfig.from_hf({**SPARSE, "vocab_size": len(tokenizer)}))
    model.init_weights(0)
    releases = []
    for name, kind, of in (("general_rl", "teacher", None), ("general_rl-int8", "variant", "general_rl")):
        folder = release_folder(root, name)
        write_release(model, tokenizer, Sampling(max_new_tokens=8), folder, packed=of is not None)
        digest, files = write_checksums(folder)
        releases.append(Release(name, digest, kind, of, name, {}, files, 1, 1, {}, {}))  # type: ignore[arg-type]
    Record(tuple(releases), {}, {}).write(root / "artifacts" / "deployment")
    return root


def run(script: Path, tools: Path, **environment: str) -> list[str]:
    """The lines that a written script says, with stand-ins of the programs that it calls."""
    tools.mkdir(exist_ok=True)
    for name in ("vllm", "llama-server"):
        (tools / name).write_text(SAY)
        (tools / name).chmod(0o755)
    path = os.pathsep.join([str(tools), os.environ["PATH"]])
    done = subprocess.run(
        [str(script), "--more", "1"],
        env=os.environ | environment | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_vllm_is_given_the_release(root: Path, tmp_path: Path) -> None:
    [script] = export(root, tmp_path / "out", "vllm")
    said = run(script, tmp_path / "tools")
    assert said[:2] == ["serve", str(release_folder(root, "general_rl").resolve())]
    assert said[-2:] == ["--more", "1"]
    options = dict(zip(said[2:-2:2], said[3:-2:2], strict=True))
    assert options == {
        "--served-model-name": "general_rl",
        "--max-model-len": "512",
        "--dtype": "float32",
        "--reasoning-parser": "deepseek_r1",
    }
    assert run(script, tmp_path / "tools", RELEASE="/elsewhere")[1] == "/elsewhere"


def test_llama_cpp_is_told_the_vocabulary(root: Path, tmp_path: Path) -> None:
    script, _ = export(root, tmp_path / "a folder", "llama.cpp")
    checkout = tmp_path / "llama.cpp"
    checkout.mkdir()
    (checkout / "convert_hf_to_gguf.py").write_text(CONVERTER)
    (checkout / "gguf.py").write_text(GGUF)
    for _ in range(2):  # the second time it is there
        said = run(script, tmp_path / "tools", LLAMA_CPP=str(checkout))
        assert said[:4] == ["--model", "general_rl-f32.gguf", "--alias", "general_rl"]
    written: dict[str, Any] = json.loads((script.parent / "general_rl-f32.gguf").read_text())
    tokens = written["add_token_list"]
    kinds = dict(zip(tokens, written["add_token_types"], strict=True))
    tokenizer = character_tokenizer(chat.CHAT_TEMPLATE)
    assert len(tokens) == len(tokenizer)
    known = tokenizer.encode("<bos>7 \n", add_special_tokens=False)
    assert [tokens[number] for number in known] == ["<bos>", "7", "Ġ", "Ċ"]
    assert (kinds["7"], kinds["<bos>"], kinds["<think>"]) == (1, 3, 4)
    assert written["add_token_merges"]
    assert written["add_q_lora_rank"] == 0
    assert written["arguments"][0] == str(release_folder(root, "general_rl").resolve())


def test_kserve_is_told_where_the_files_are(root: Path, tmp_path: Path) -> None:
    [file] = export(root, tmp_path, "kserve", "general_rl-int8", "pvc://models/int8")
    manifest = read_yaml(file)
    assert (manifest["apiVersion"], manifest["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    assert manifest["metadata"]["name"] == "general-rl-int8"
    model = manifest["spec"]["predictor"]["model"]
    assert model["storageUri"] == "pvc://models/int8"
    assert "--model_name=general_rl-int8" in model["args"]


@pytest.mark.parametrize(
    ("to", "name", "storage", "rule"),
    [
        ("llama.cpp", "general_rl-int8", None, "does not read: export general_rl"),
        ("kserve", None, None, "--storage: must say where"),
        ("kserve", None, "/a/folder", "--storage /a/folder: must say where"),
        ("vllm", None, "s3://bucket", "only a cluster"),
        ("vllm", "absent", None, "must be one of general_rl, general_rl-int8"),
    ],
)
def test_what_cannot_be_served_is_refused(
    root: Path, tmp_path: Path, to: str, name: str | None, storage: str | None, rule: str
) -> None:
    with pytest.raises(InputError, match=rule):
        export(root, tmp_path / "out", to, name, storage)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("where", ["file", "file/below", "/proc/self/out"])
def test_a_folder_that_cannot_be_written_is_refused(root: Path, tmp_path: Path, where: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=f"{tmp_path / where}: must be a folder that can be written: "):
        export(root, tmp_path / where, "vllm")

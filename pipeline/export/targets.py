"""What a release needs to be served elsewhere, and what is written for it."""

import io
import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline.errors import InputError
from pipeline.files import atomic_file
from pipeline.release.record import Record, Release, read_record, release_folder, verify_checksums

CONVERTER = "convert_for_llama_cpp.py"
DTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}  # of config.json → of llama.cpp's converter
STORAGES = ("s3://", "gs://", "pvc://", "https://", "hf://")


@dataclass(frozen=True, slots=True)
class Source:
    """A release whose files are whole."""

    release: Release
    folder: Path
    config: dict[str, Any]
    storage: str | None  # where a cluster finds the files

    @property
    def about(self) -> str:
        return f"{self.release.name}, release {self.release.digest}"

    @property
    def positions(self) -> int:
        """The longest sequence of prompt and completion."""
        return int(self.config["max_position_embeddings"])


Write = Callable[[Source], dict[str, str]]
"""Gives name → content of the files."""


def export(root: Path, out: Path, to: str, name: str | None = None, storage: str | None = None) -> list[Path]:
    """Write what serves a release by `to`, one of `TARGETS`, into the folder `out`; returns the files.

    Without a name it is the teacher. Raises InputError where there is no such release, its files are not whole, the
    target does not read it, or `out` cannot be written.
    """
    if storage is not None and to != "kserve":
        raise InputError(f"--storage {storage}: only a cluster needs it (--to kserve)")
    release = _release(read_record(root), name)
    folder = release_folder(root, release.name).resolve()
    verify_checksums(folder, release.digest)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    files = TARGETS[to](Source(release, folder, config, storage))
    try:
        for file, content in files.items():
            _write(out / file, content)
    except OSError as error:
        raise InputError(f"{out}: must be a folder that can be written: {error.strerror}") from error
    return [out / file for file in files]


def _write(path: Path, content: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(content, encoding="utf-8")
        temporary.chmod(0o755 if path.suffix == ".sh" else 0o644)


def _release(record: Record, name: str | None) -> Release:
    found = {release.name: release for release in record.releases}
    if name is None:
        return next(release for release in record.releases if release.kind == "teacher")
    if name not in found:
        raise InputError(f"--release {name}: must be one of {', '.join(found)}")
    return found[name]


def _vllm(source: Source) -> dict[str, str]:
    """vLLM reads the folder as it is."""
    arguments = [f"--served-model-name {source.release.name}", *_vllm_arguments(source)]
    command = " \\\n  ".join(['exec vllm serve "${RELEASE:-$here}"', *arguments, '"$@"'])
    hardware = (
        "# Its weights are int8, pack-quantized: vLLM has no kernel for that on a CPU.\n"
        if "quantization_config" in source.config
        else ""
    )
    text = (
        f"#!/bin/sh\n# Serve {source.about}, by vLLM: http://127.0.0.1:8000/v1\n"
        "# RELEASE=DIR where the release lies elsewhere; further options go to vLLM. The marks of thinking and answer\n"
        '# are special tokens: clients send "skip_special_tokens": false to have them told apart.\n'
        f"{hardware}here={shlex.quote(str(source.folder))}\n{command}\n"
    )
    return {"serve.sh": text}


def _vllm_arguments(source: Source) -> list[str]:
    dtype = source.config.get("dtype") or source.config.get("torch_dtype") or "auto"
    return [f"--max-model-len {source.positions}", f"--dtype {dtype}", "--reasoning-parser deepseek_r1"]


def _llama_cpp(source: Source) -> dict[str, str]:
    """llama.cpp reads its own format: its converter makes that, told about the tokenizer where it cannot know it."""
    if "quantization_config" in source.config:
        raise InputError(
            f"--release {source.release.name}: int8 by channel, which llama.cpp's converter does not read: export "
            f"{source.release.of} and convert it with OUTTYPE=q8_0"
        )
    name, kind = source.release.name, DTYPES.get(str(source.config.get("dtype")), "auto")
    text = (
        f"#!/bin/sh\n# Convert {source.about}, and serve it by llama.cpp: http://127.0.0.1:8080/v1\n"
        "# LLAMA_CPP=DIR is its checkout, with the converter's requirements installed and llama-server on the PATH.\n"
        f"# RELEASE=DIR where the release lies elsewhere; OUTTYPE={kind} unless another is named (q8_0, bf16).\n"
        'set -eu\n: "${LLAMA_CPP:?is the folder of llama.cpp}"\n'
        f'cd "$(dirname "$0")"\nhere={shlex.quote(str(source.folder))}\ntype="${{OUTTYPE:-{kind}}}"\n'
        f'[ -f "{name}-$type.gguf" ] || {{\n'
        f'  python {CONVERTER} "$LLAMA_CPP" "${{RELEASE:-$here}}" --outfile "{name}-$type.part" --outtype "$type"\n'
        f'  mv "{name}-$type.part" "{name}-$type.gguf"\n}}\n'
        f'exec llama-server --model "{name}-$type.gguf" --alias {name} --ctx-size {source.positions} --jinja '
        '--reasoning-format deepseek "$@"\n'
    )
    return {"serve.sh": text, CONVERTER: Path(__file__).with_name(CONVERTER).read_text(encoding="utf-8")}


def _kserve(source: Source) -> dict[str, str]:
    """An InferenceService whose runtime is KServe's for Hugging Face folders, which is vLLM inside."""
    if source.storage is None or not source.storage.startswith(STORAGES):
        given = "" if source.storage is None else f" {source.storage}"
        raise InputError(f"--storage{given}: must say where the cluster finds the files: {', '.join(STORAGES)}…")
    arguments = [argument.replace(" ", "=") for argument in _vllm_arguments(source)]
    gpu = {"cpu": "4", "memory": "16Gi", "nvidia.com/gpu": "1"}
    manifest = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": source.release.name.replace("_", "-").lower(),
            "annotations": {"r1flow/release": source.release.name, "r1flow/digest": source.release.digest},
        },
        "spec": {
            "predictor": {
                "minReplicas": 1,
                "model": {
                    "modelFormat": {"name": "huggingface"},
                    "args": [f"--model_name={source.release.name}", *arguments],
                    "storageUri": source.storage,
                    "resources": {"requests": gpu, "limits": dict(gpu)},
                },
            }
        },
    }
    text, writer = io.StringIO(), YAML()
    writer.default_flow_style, writer.width = False, 200
    writer.dump(manifest, text)
    return {"inferenceservice.yaml": text.getvalue()}


TARGETS: dict[str, Write] = {"vllm": _vllm, "llama.cpp": _llama_cpp, "kserve": _kserve}

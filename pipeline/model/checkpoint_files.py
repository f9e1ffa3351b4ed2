"""The files of a checkpoint: config.json and *.safetensors, sharded or not, as one collection of named tensors.

Tensors are views of the mapped files: a page is read when a number in it is. Only safetensors are opened, so nothing in
a checkpoint can run.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from pipeline.errors import InputError
from pipeline.model import packed_int8, packed_layout
from pipeline.model.stored import Stored

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
GENERATION = "generation_config.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def read_config(folder: Path) -> dict[str, Any]:
    """config.json, but for what ends a completion: where generation_config.json says it too, it is the one meant."""
    raw = _read_json(folder / "config.json")
    if (folder / GENERATION).is_file():  # chat models differ
        ends = _read_json(folder / GENERATION).get("eos_token_id")
        raw |= {} if ends is None else {"eos_token_id": ends}
    return raw


class Tensors:
    """The tensors of a checkpoint's files under the names that unpacked ones have, as views of the mapped files."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self.config = config
        self._packed = packed_layout.require_layout(folder / "config.json", config)
        self._folder, self._files = folder, ExitStack()
        self._of: dict[str, Any] = {}  # name in the files → the open file

    def __enter__(self) -> "Tensors":
        for file in _weight_files(self._folder):
            with _explained(file):
                opened = self._files.enter_context(safe_open(file, framework="pt"))
                self._of |= dict.fromkeys(opened.keys(), opened)
        return self

    def __exit__(self, *error: object) -> None:
        self._files.close()

    def __iter__(self) -> Iterator[str]:
        for name in self._of:
            if not self._packed or not name.endswith(packed_int8.PARTS):
                yield name
            elif name.endswith(packed_int8.PACKED):
                yield name.removesuffix(packed_int8.PACKED) + ".weight"

    def __contains__(self, name: str) -> bool:
        return name in self._of or (self._packed and packed_int8.packed_name(name) in self._of)

    def stored(self, name: str) -> Stored:
        if name in self._of:
            return Stored(self._of[name].get_tensor(name), None)
        packed, scale = packed_int8.packed_name(name), packed_int8.scale_name(name)
        if scale not in self._of:
            raise InputError(f"{self._folder}: has {packed} without {scale}: must have both")
        numbers, scales = packed_int8.from_disk(self._of[packed].get_tensor(packed), self._of[scale].get_tensor(scale))
        return Stored(numbers, scales)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path}: not found: a model folder must have it")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: is a {type(content).__name__}: must be a JSON object")
    return content


def _weight_files(folder: Path) -> list[Path]:
    if (folder / INDEX).is_file():
        weight_map = _read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise InputError(f"{folder / INDEX}: weight_map must be an object from tensor to file name")
        names = sorted(set(weight_map.values()))
        for name in names:
            if Path(name).name != name or not (folder / name).is_file():
                raise InputError(f"{folder / INDEX}: names {name}: must be a file beside it")
        return [folder / name for name in names]
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    pickles = sorted(entry.name for entry in folder.iterdir() if entry.suffix in PICKLES)
    if pickles:
        raise InputError(f"{folder}: has only {pickles[0]}: a pickle can run code, must be safetensors")
    raise InputError(f"{folder}: has neither {SINGLE} nor {INDEX}")


@contextmanager
def _explained(file: Path) -> Iterator[None]:
    try:
        yield
    except SafetensorError as error:
        raise InputError(f"{file}: is not a whole safetensors file ({error})") from error

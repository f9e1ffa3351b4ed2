"""Pins follow the sources: params of a working folder name the content that its sources have now.

A pin protects a recipe from data that changes under it. Who looks for new data wants the opposite: to know that it has
changed, and to have it judged. So this changes the digests in the folder's params.yaml and says what they are now; the
params in git stay as they are. A data set of the hub stays at the commit that params name.
"""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline.data.pins import folder_digest, path_digest
from pipeline.data.sources import data_root
from pipeline.files import atomic_file
from pipeline.job import PARAMS_FILE, read_yaml
from pipeline.params import FileSource, HubSource, load_params


def follow_sources(root: Path) -> list[dict[str, Any]]:
    """Pin every file source of the project at `root` anew. Returns curation.sources as they now are in params.yaml, or
    nothing where all pins held. Raises InputError where a source is not there."""
    params, data = load_params(root / PARAMS_FILE), data_root(root)
    document = read_yaml(root / PARAMS_FILE)
    changed = False
    for source, written in zip(params.curation.sources, document["curation"]["sources"], strict=True):
        match source:
            case FileSource():
                found = path_digest(source.path, data)
            case HubSource() if (data / source.dataset).is_dir():
                found = folder_digest(data / source.dataset)
            case _:
                continue
        if found != source.digest:
            written["digest"], changed = found, True
    if not changed:
        return []
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    with atomic_file(root / PARAMS_FILE) as temporary, temporary.open("w", encoding="utf-8") as file:
        writer.dump(document, file)
    load_params(root / PARAMS_FILE)
    return document["curation"]["sources"]

"""Pins follow what the sources hold."""

import json
from pathlib import Path

import pytest

from pipeline.data.pins import path_digest
from pipeline.errors import InputError
from pipeline.incoming.pins import follow_sources
from pipeline.job import read_yaml
from tests.project import PARAMS

SOURCES = """\
curation:
  sources:
    - {kind: generated, name: made, problems: 10, families: {sum: 1.0}}
    - {kind: jsonl, name: sums, path: sums.jsonl, task: sum, digest: "%s"}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "sums.jsonl").write_text(json.dumps({"prompt": "1+1", "gold": "2"}))
    before = PARAMS[PARAMS.index("curation:") : PARAMS.index("base:")]
    (tmp_path / "params.yaml").write_text(PARAMS.replace(before, SOURCES % ("0" * 64)))
    return tmp_path


def test_a_pin_takes_the_contents_digest_once(project: Path) -> None:
    now = path_digest("sums.jsonl", project)
    before = read_yaml(project / "params.yaml")
    sources = follow_sources(project)
    assert [source.get("digest") for source in sources] == [None, now]
    after = read_yaml(project / "params.yaml")
    assert after["curation"]["sources"] == sources
    assert {**after, "curation": None} == {**before, "curation": None}
    written = (project / "params.yaml").read_bytes()
    assert follow_sources(project) == []
    assert (project / "params.yaml").read_bytes() == written


def test_a_source_that_is_gone_is_named(project: Path) -> None:
    (project / "sums.jsonl").unlink()
    with pytest.raises(InputError, match=r"sums\.jsonl"):
        follow_sources(project)

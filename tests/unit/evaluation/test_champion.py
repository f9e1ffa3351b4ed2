"""The champion's samples are read from where params say, if they are the ones that are meant."""

from pathlib import Path
from typing import Any

import boto3
import polars as pl
import pytest
from moto.server import ThreadedMotoServer

from pipeline.errors import InputError
from pipeline.evaluation.champion import read_champion
from pipeline.files import digest
from pipeline.params import Champion
from tests.unit.evaluation.tables import judged

SAMPLES = judged({"general_rl": ["rr", "rw"], "base": ["ww", "ww"]})


def _options(path: Path, **options: Any) -> Champion:
    return Champion.model_validate({"samples": path.name, "digest": digest(path), **options})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "champion.parquet"
    SAMPLES.write_parquet(path)
    return path


def test_its_pass_at_1_by_problem(file: Path) -> None:
    found = read_champion(_options(file), file.parent, file.parent)
    assert found.select("problem_id", "pass_at_1", "verifier").rows() == [
        ("0000", 1.0, "numeric 1"),
        ("0001", 0.5, "numeric 1"),
    ]


def test_of_an_earlier_release_the_columns_that_matter_are_enough(file: Path) -> None:
    SAMPLES.drop("language", "preference", "prompt").write_parquet(file)
    assert len(read_champion(_options(file), file.parent, file.parent)) == 2


def test_other_samples_than_the_pinned_ones_are_refused(file: Path) -> None:
    options = _options(file)
    SAMPLES.reverse().write_parquet(file)
    with pytest.raises(InputError, match=rf"evaluation\.champion\.digest: {options.digest}: .* has digest"):
        read_champion(options, file.parent, file.parent)


def test_what_is_no_such_table_is_refused(file: Path) -> None:
    with pytest.raises(InputError, match=r"model: general_sft: not in .*\['base', 'general_rl'\]"):
        read_champion(_options(file, model="general_sft"), file.parent, file.parent)
    pl.DataFrame({"model": ["general_rl"]}).write_parquet(file)
    with pytest.raises(InputError, match="are not those of Sample"):
        read_champion(_options(file), file.parent, file.parent)
    file.write_text("no parquet")
    with pytest.raises(InputError, match="not a readable parquet file"):
        read_champion(_options(file), file.parent, file.parent)
    options = _options(file)
    file.unlink()
    with pytest.raises(InputError, match="no such file"):
        read_champion(options, file.parent, file.parent)


def test_it_may_lie_in_a_store(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket="releases")
        client.upload_file(str(file), "releases", "r1/samples.parquet")
        options = _options(file).model_copy(update={"samples": "s3://releases/r1/samples.parquet"})
        found = read_champion(options, tmp_path / "elsewhere", tmp_path / "scratch")
        assert found.equals(read_champion(_options(file), tmp_path, tmp_path))
        missing = options.model_copy(update={"samples": "s3://releases/r1/none.parquet"})
        with pytest.raises(InputError, match="r1/none"):
            read_champion(missing, tmp_path, tmp_path / "scratch")
    finally:
        server.stop()

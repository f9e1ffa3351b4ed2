"""The artifact store on a folder and on an S3 server on loopback."""

from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from pipeline.errors import InputError
from pipeline.store import Store, open_store


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    yield f"http://{host}:{port}"
    moto.stop()


@pytest.fixture
def bucket(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    name = f"bucket-{tmp_path.name.replace('_', '-')}"[:60].lower().rstrip("-")
    boto3.client("s3").create_bucket(Bucket=name)
    return name


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return open_store(str(tmp_path / "store"))
    return open_store(f"s3://{request.getfixturevalue('bucket')}/some/prefix/")


def test_what_was_uploaded_comes_back(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "weights"
    source.write_bytes(bytes(range(256)) * 40_000)  # more than one part of a multipart upload
    store.upload(source, "model/weights")
    store.download("model/weights", tmp_path / "deep" / "copy")
    assert (tmp_path / "deep" / "copy").read_bytes() == source.read_bytes()


def test_lists_keys_below_a_prefix_in_order(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for key in ("b/2", "a", "b/1"):
        store.upload(tmp_path / "file", key)
    assert list(store.list()) == ["a", "b/1", "b/2"]
    assert list(store.list("b/")) == ["b/1", "b/2"]


def test_a_missing_key_is_named_and_leaves_no_file(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    store.upload(tmp_path / "file", "there")
    with pytest.raises(InputError, match="not/there"):
        store.download("not/there", tmp_path / "copies" / "copy")
    assert list((tmp_path / "copies").glob("*")) == []


def test_a_failed_download_keeps_what_was_there(bucket: str, tmp_path: Path) -> None:
    (tmp_path / "copy").write_text("old")
    with pytest.raises(InputError):
        open_store(f"s3://{bucket}").download("missing", tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == "old"


def test_a_missing_bucket_is_an_input_error(bucket: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"s3://nobody-has-this/.*NoSuchBucket"):
        list(open_store("s3://nobody-has-this").list())
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="NoSuchBucket"):
        open_store("s3://nobody-has-this").upload(tmp_path / "file", "key")


def test_a_missing_folder_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        list(open_store(str(tmp_path / "nowhere")).list())


def test_a_uri_without_a_bucket_is_refused() -> None:
    with pytest.raises(InputError, match="names no bucket"):
        open_store("s3:///prefix")


def test_missing_credentials_are_an_input_error(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    boto3.DEFAULT_SESSION = None
    with pytest.raises(InputError, match="no credentials"):
        list(open_store(f"s3://{bucket}").list())


def test_a_server_that_is_away_is_not_the_users_mistake(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("pipeline.store.ATTEMPTS", 1)
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1:9 does not answer"):
        list(open_store(f"s3://{bucket}").list())


def test_a_key_that_leads_out_of_the_folder_is_refused(bucket: str) -> None:
    boto3.client("s3").put_object(Bucket=bucket, Key="data/../../etc/passwd", Body=b"x")
    with pytest.raises(InputError, match="must not lead out"):
        list(open_store(f"s3://{bucket}/data").list())


def test_a_key_is_created_once(store: Store, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    assert store.create(tmp_path / "one", "deep/key")
    assert not store.create(tmp_path / "two", "deep/key")
    store.download("deep/key", tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == "one"
    assert list(store.list()) == ["deep/key"]

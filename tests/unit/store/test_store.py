"""The artifact store on a folder and on an S3 server on loopback."""

import logging
import os
from pathlib import Path

import boto3
import pytest

from pipeline.errors import InputError
from pipeline.store import Limits, Store, artifact_store, open_store


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
    with pytest.raises(InputError, match="no credentials"):
        list(open_store(f"s3://{bucket}").list())


def test_a_server_that_is_away_is_not_the_users_mistake(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1:9 does not answer"):
        list(open_store(f"s3://{bucket}", Limits(attempts=1)).list())


def test_a_key_that_leads_out_of_the_folder_is_refused(bucket: str) -> None:
    boto3.client("s3").put_object(Bucket=bucket, Key="data/../../etc/passwd", Body=b"x")
    with pytest.raises(InputError, match="must not lead out"):
        list(open_store(f"s3://{bucket}/data").list())


def test_a_key_is_created_once(store: Store) -> None:
    assert store.create("deep/key", b"one")
    assert not store.create("deep/key", b"two")
    assert store.create("deep/key", b"one")  # the response of the first time may have been lost
    found = store.read("deep/key")
    assert found is not None
    assert found.data == b"one"
    assert list(store.list()) == ["deep/key"]


def test_only_what_was_read_is_replaced(store: Store) -> None:
    assert not store.replace("key", b"x", '"nothing"')
    store.create("key", b"one")
    first = store.read("key")
    assert first is not None
    assert store.replace("key", b"two", first.version)
    assert store.replace("key", b"two", first.version)  # as after a lost response
    assert not store.replace("key", b"three", first.version)
    second = store.read("key")
    assert second is not None
    assert second.data == b"two"
    store.delete("key")
    store.delete("key")
    assert store.read("key") is None
    assert not store.replace("key", b"four", second.version)


def test_says_what_is_there(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("four")
    store.upload(tmp_path / "file", "a/b")
    [entry] = store.entries("a/")
    assert entry == store.stat("a/b")
    assert (entry.key, entry.size) == ("a/b", 4)
    assert abs(entry.modified - (tmp_path / "file").stat().st_mtime) < 60
    assert store.stat("a") is None
    assert store.stat("b") is None


def test_what_others_are_writing_is_not_listed(tmp_path: Path) -> None:
    store = artifact_store("store", tmp_path)
    store.create("key", b"x")
    (tmp_path / "store" / ".key.tmp-1").write_text("half")
    assert list(store.list()) == ["key"]


def test_a_store_outside_of_the_project_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must be there"):
        artifact_store(str(tmp_path / "not mounted"), tmp_path)


def test_a_profile_that_is_not_there_is_an_input_error(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(InputError, match="nobody"):
        list(open_store(f"s3://{bucket}").list())


SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"


def test_no_secret_is_told(bucket: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    told = []
    for uri in (f"s3://{bucket}", "s3://nobody-has-this"):
        store = open_store(uri, Limits(attempts=2))
        for call in (lambda: store.create("key", b"x"), lambda: list(store.list()), lambda: store.read("none")):  # noqa: B023
            try:
                told.append(str(call()))
            except InputError as error:
                told.append(str(error))
    told.append(repr(vars(open_store(f"s3://{bucket}"))))
    assert any("NoSuchBucket" in one for one in told)
    assert SECRET not in caplog.text + "".join(told)


@pytest.mark.parametrize("variable", ["s3://KEY:{}@bucket/prefix", "AWS_ENDPOINT_URL"])
def test_credentials_in_an_address_are_refused_and_not_told(
    variable: str, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"s3://{bucket}"
    if variable == "AWS_ENDPOINT_URL":
        monkeypatch.setenv(variable, os.environ[variable].replace("//", "//KEY:hush@"))
    else:
        uri = variable.format("hush")
    with pytest.raises(InputError, match="must not hold credentials") as refused:
        list(open_store(uri).list())
    assert "hush" not in str(refused.getrepr(chain=True, showlocals=False, style="short")).replace('"hush"', "")


def test_amazon_gets_checksums_and_others_do_not(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def mode(uri: str) -> str:
        return open_store(uri)._client.meta.config.request_checksum_calculation  # type: ignore[attr-defined]

    assert mode(f"s3://{bucket}") == "when_required"
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    assert mode(f"s3://{bucket}") == "when_supported"

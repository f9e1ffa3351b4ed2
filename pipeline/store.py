"""Files by key in a local folder or under an S3 prefix. The only place that knows boto3.

Keys are relative to the store's own folder or prefix, with `/` between their parts. A download takes its name only
when it is whole. Credentials come from boto3's own chain, an S3-compatible server's address from AWS_ENDPOINT_URL;
such servers may refuse the checksums that newer boto3 adds, so none is sent that the operation does not require.
"""

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pipeline.errors import InputError
from pipeline.files import atomic_file, digest, flush

if TYPE_CHECKING:
    from botocore.client import BaseClient

CONNECT_SECONDS = 10
READ_SECONDS = 60
ATTEMPTS = 5


class Store(Protocol):
    def list(self, prefix: str = "") -> Iterator[str]:
        """Keys that begin with `prefix`, sorted."""
        ...

    def tags(self, prefix: str = "") -> dict[str, str]:
        """For each key that begins with `prefix`, sorted, a text that changes with the object's content."""
        ...

    def download(self, key: str, to: Path) -> None:
        """Copy an object to the file `to` in one atomic step."""
        ...

    def upload(self, path: Path, key: str) -> None:
        """Copy the file `path` to `key`, over what may be there."""
        ...

    def create(self, path: Path, key: str) -> bool:
        """Copy the small file `path` to `key` in one atomic step; False where something is there, which then stays."""
        ...


def open_store(uri: str) -> Store:
    """The store at `s3://bucket/prefix` or in a local folder. Nothing is asked of it yet."""
    if not uri.startswith("s3://"):
        return LocalStore(Path(uri))
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise InputError(f"{uri}: names no bucket; s3://bucket or s3://bucket/prefix is meant")
    return S3Store(bucket, f"{prefix.rstrip('/')}/" if prefix else "")


class LocalStore:
    """Objects are files below a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def tags(self, prefix: str = "") -> dict[str, str]:
        return {key: digest(self._folder / key) for key in self.list(prefix)}

    def list(self, prefix: str = "") -> Iterator[str]:
        if not self._folder.is_dir():
            raise InputError(f"{self._folder}: no such folder")
        keys = (entry.relative_to(self._folder).as_posix() for entry in self._folder.rglob("*") if entry.is_file())
        yield from sorted(key for key in keys if key.startswith(prefix))

    def download(self, key: str, to: Path) -> None:
        source = self._folder / key
        if not source.is_file():
            raise InputError(f"{source}: no such file")
        _copy(source, to)

    def upload(self, path: Path, key: str) -> None:
        _copy(path, self._folder / key)

    def create(self, path: Path, key: str) -> bool:
        target = self._folder / key
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}-{threading.get_ident()}")
        try:
            shutil.copyfile(path, temporary)
            flush(temporary)
            os.link(temporary, target)  # unlike a rename it fails where the name is taken
            flush(target.parent)
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        return True


class S3Store:
    """Objects are S3 objects below a prefix."""

    def __init__(self, bucket: str, prefix: str) -> None:
        self._bucket, self._prefix = bucket, prefix

    @cached_property
    def _client(self) -> "BaseClient":
        import boto3
        from botocore.config import Config

        config = Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            retries={"mode": "adaptive", "total_max_attempts": ATTEMPTS},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        return boto3.client("s3", config=config)

    def list(self, prefix: str = "") -> Iterator[str]:
        yield from self.tags(prefix)

    def tags(self, prefix: str = "") -> dict[str, str]:
        found: dict[str, str] = {}
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=self._prefix + prefix
        )
        with self._explained(prefix):
            for page in pages:
                for entry in page.get("Contents", []):
                    key = entry["Key"].removeprefix(self._prefix)
                    if ".." in key.split("/") or key.startswith("/"):
                        raise InputError(f"{self._uri(key)}: a key must not lead out of the folder it is copied to")
                    found[key] = f"{entry['Size']} {entry['ETag']}"
        return found

    def download(self, key: str, to: Path) -> None:
        name = {"Bucket": self._bucket, "Key": self._prefix + key}
        with self._explained(key), atomic_file(to) as temporary:
            size = self._client.head_object(**name)["ContentLength"]
            self._client.download_file(**name, Filename=str(temporary))
            if temporary.stat().st_size != size:
                raise ConnectionError(f"{self._uri(key)}: {temporary.stat().st_size} bytes came instead of {size}")

    def upload(self, path: Path, key: str) -> None:
        with self._explained(key):
            self._client.upload_file(Filename=str(path), Bucket=self._bucket, Key=self._prefix + key)

    def create(self, path: Path, key: str) -> bool:
        from botocore.exceptions import ClientError

        name = {"Bucket": self._bucket, "Key": self._prefix + key}
        with self._explained(key):
            try:
                self._client.put_object(**name, Body=path.read_bytes(), IfNoneMatch="*")
            except ClientError as error:
                # 412: it is there; 409: another one is just writing it, so it will be.
                if error.response["ResponseMetadata"]["HTTPStatusCode"] not in (409, 412):
                    raise
                return False
        return True

    def _uri(self, key: str) -> str:
        return f"s3://{self._bucket}/{self._prefix}{key}"

    @contextmanager
    def _explained(self, key: str) -> Iterator[None]:
        """Say where and what: InputError for what the user can mend, ConnectionError for what may pass."""
        from boto3.exceptions import S3UploadFailedError
        from botocore.exceptions import ClientError, HTTPClientError, NoCredentialsError, PartialCredentialsError
        from botocore.exceptions import ConnectionError as NoConnectionError

        uri, endpoint = self._uri(key), self._client.meta.endpoint_url
        try:
            yield
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise InputError(
                f"{uri}: no credentials in the environment, ~/.aws or this machine's role: {error}"
            ) from error
        except (NoConnectionError, HTTPClientError) as error:
            raise ConnectionError(f"{uri}: {endpoint} does not answer: {error}") from error
        except (ClientError, S3UploadFailedError) as error:
            refusal = error if isinstance(error, ClientError) else error.__context__
            status = refusal.response["ResponseMetadata"]["HTTPStatusCode"] if isinstance(refusal, ClientError) else 500
            kind = InputError if 400 <= status < 500 else ConnectionError
            raise kind(f"{uri}: {endpoint} refuses: {error}") from error


def _copy(source: Path, to: Path) -> None:
    with atomic_file(to) as temporary:
        shutil.copyfile(source, temporary)

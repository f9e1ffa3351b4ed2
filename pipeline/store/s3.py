"""A store under an S3 prefix. The only place that knows boto3.

Credentials come from boto3's own chain and from nowhere else, an S3-compatible server's address from AWS_ENDPOINT_URL.
Such servers may refuse the checksums that newer boto3 adds: to them none is sent that the operation does not require.
Every request has time limits, and is tried again, ever more slowly where the server says that it is busy.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline.errors import InputError
from pipeline.files import atomic_file
from pipeline.store.interface import Content, Entry

AMAZON = (".amazonaws.com", ".amazonaws.com.cn")
MAY_PASS = (408, 409, 429)  # of the statuses that blame the client
CONFLICTS = 8  # times that a conditional write is sent again because another one was just being carried out


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a request may take and how often it is tried."""

    connect_seconds: float = 10.0
    read_seconds: float = 60.0  # between two pieces of an answer
    attempts: int = 5


LIMITS = Limits()


class S3Store:
    """Objects are S3 objects below a prefix. One store may be used by several threads."""

    def __init__(self, bucket: str, prefix: str, limits: Limits = LIMITS) -> None:
        self._bucket, self._prefix, self._limits = bucket, prefix, limits
        self._connecting = threading.Lock()

    def __str__(self) -> str:
        return self._uri("")

    @cached_property
    def _client(self) -> Any:  # botocore makes its methods from a description of the service
        import boto3
        from botocore.config import Config

        with self._connecting:
            config = Config(
                connect_timeout=self._limits.connect_seconds,
                read_timeout=self._limits.read_seconds,
                retries={"mode": "adaptive", "total_max_attempts": self._limits.attempts},
                max_pool_connections=16,
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            )
            session = boto3.session.Session()
            client = session.client("s3", config=config)
            address = urlsplit(client.meta.endpoint_url)
            if address.username is not None:
                raise InputError("AWS_ENDPOINT_URL: must not hold credentials")
            if not (address.hostname or "").endswith(AMAZON):
                return client
            checked = Config(
                request_checksum_calculation="when_supported", response_checksum_validation="when_supported"
            )
            return session.client("s3", config=config.merge(checked))

    def list(self, prefix: str = "") -> Iterator[str]:
        yield from (key for key, _ in self._found(prefix))

    def tags(self, prefix: str = "") -> dict[str, str]:
        return {key: f"{entry['Size']} {entry['ETag']}" for key, entry in self._found(prefix)}

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        for key, entry in self._found(prefix):
            yield Entry(key, entry["Size"], entry["LastModified"].timestamp())

    def _found(self, prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
        with self._explained(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix + prefix
            )
            for page in pages:
                for entry in page.get("Contents", []):
                    key = entry["Key"].removeprefix(self._prefix)
                    if ".." in key.split("/") or key.startswith("/"):
                        raise InputError(f"{self._uri(key)}: a key must not lead out of the folder it is copied to")
                    yield key, entry

    def stat(self, key: str) -> Entry | None:
        with self._explained(key):
            found = self._unless(404, lambda: self._client.head_object(**self._name(key)))
        return None if found is None else Entry(key, found["ContentLength"], found["LastModified"].timestamp())

    def download(self, key: str, to: Path) -> None:
        with self._explained(key), atomic_file(to) as temporary:
            size = self._client.head_object(**self._name(key))["ContentLength"]
            self._client.download_file(**self._name(key), Filename=str(temporary))
            if temporary.stat().st_size != size:
                raise ConnectionError(f"{self._uri(key)}: {temporary.stat().st_size} bytes came instead of {size}")

    def upload(self, path: Path, key: str) -> None:
        with self._explained(key):
            self._client.upload_file(Filename=str(path), **self._name(key))

    def read(self, key: str) -> Content | None:
        from botocore.exceptions import HTTPClientError, IncompleteReadError
        from urllib3.exceptions import HTTPError

        def whole() -> Content | None:
            found = self._unless("NoSuchKey", lambda: self._client.get_object(**self._name(key)))
            if found is None:
                return None
            try:
                return Content(found["Body"].read(), found["ETag"])
            except (HTTPClientError, IncompleteReadError) as error:
                raise HTTPError(str(error)) from error

        with self._explained(key):
            for _ in range(self._limits.attempts - 1):
                with suppress(HTTPError):  # the answer broke off after its head: boto3 does not ask again
                    return whole()
            return whole()

    def create(self, key: str, data: bytes) -> bool:
        return self._write(key, data, IfNoneMatch="*")

    def replace(self, key: str, data: bytes, version: str) -> bool:
        return self._write(key, data, IfMatch=version)

    def delete(self, key: str) -> None:
        with self._explained(key):
            self._client.delete_object(**self._name(key))

    def _write(self, key: str, data: bytes, **condition: str) -> bool:
        """Put an object under a condition. Refused because of it, what lies there decides who wrote it."""
        from botocore.exceptions import ClientError

        for attempt in range(CONFLICTS):
            with self._explained(key):
                try:
                    self._client.put_object(**self._name(key), Body=data, **condition)
                    return True
                except ClientError as error:
                    status = _status(error)
                    if status == 409 and attempt < CONFLICTS - 1:
                        time.sleep(min(2.0, 0.05 * 2**attempt))
                        continue
                    if status not in (404, 412) or error.response["Error"]["Code"] == "NoSuchBucket":
                        raise
            found = self.read(key)
            return found is not None and found.data == data
        raise AssertionError("the last attempt returns or raises")

    def _unless(self, absent: int | str, call: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """The answer, or None where the store says, by status or code, that there is nothing."""
        from botocore.exceptions import ClientError

        try:
            return call()
        except ClientError as error:
            if absent in (_status(error), error.response["Error"]["Code"]):
                return None
            raise

    def _name(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + key}

    def _uri(self, key: str) -> str:
        return f"s3://{self._bucket}/{self._prefix}{key}"

    @contextmanager
    def _explained(self, key: str) -> Iterator[None]:
        """Say where and what: InputError for what the user can mend, ConnectionError for what may pass."""
        from boto3.exceptions import RetriesExceededError, S3UploadFailedError
        from botocore.exceptions import (
            BotoCoreError,
            ClientError,
            HTTPClientError,
            IncompleteReadError,
            NoCredentialsError,
            PartialCredentialsError,
        )
        from botocore.exceptions import ConnectionError as NoConnectionError
        from botocore.parsers import ResponseParserError
        from urllib3.exceptions import HTTPError

        uri = self._uri(key)
        try:
            yield
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise InputError(
                f"{uri}: no credentials in the environment, ~/.aws or this machine's role: {error}"
            ) from error
        except (NoConnectionError, HTTPClientError) as error:
            raise ConnectionError(f"{uri}: {self._server} does not answer: {error}") from error
        except (IncompleteReadError, ResponseParserError, RetriesExceededError, HTTPError) as error:
            raise ConnectionError(f"{uri}: {self._server} breaks off: {error}") from error
        except (ClientError, S3UploadFailedError) as error:
            refusal = error if isinstance(error, ClientError) else error.__context__
            status = _status(refusal) if isinstance(refusal, ClientError) else 500
            kind = InputError if 400 <= status < 500 and status not in MAY_PASS else ConnectionError
            raise kind(f"{uri}: {self._server} refuses: {error}") from error
        except BotoCoreError as error:
            raise InputError(f"{uri}: S3 cannot be used as it is set up: {error}") from error

    @property
    def _server(self) -> str:
        return self._client.meta.endpoint_url


def _status(error: Any) -> int:
    status: int = error.response["ResponseMetadata"]["HTTPStatusCode"]
    return status

"""What a client did wrong or has to wait for, in the form that OpenAI's clients read."""

from typing import Any


class RequestError(Exception):
    """Ends a request. `param` names the field that is to blame, `retry` the seconds after which to try again."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry = status, message, param, code, retry

    @property
    def body(self) -> dict[str, Any]:
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.retry is None else {"Retry-After": str(self.retry)}


def lost() -> RequestError:
    return RequestError(
        503, "the engine has just ended and is being started again: try again", code="engine_lost", retry=5
    )


def starting() -> RequestError:
    return RequestError(503, "the model is being loaded: try again", code="engine_starting", retry=5)


def late(seconds: float) -> RequestError:
    return RequestError(504, f"the request was not done within {seconds:g} s (request_seconds)", code="timeout")

"""Requests in OpenAI's form, as far as they are served.

What would change the answer and is not served is refused, never ignored: a field that is not here is an error, and
fields such as `presence_penalty` take the one value that changes nothing. `top_k`, `min_p` and `reasoning_budget` are
not OpenAI's; the first two have the names that other servers use.

A body's errors are bounded as its size is: a list ends at its first error (`fail_fast`), and of unknown fields one is
told. Else a body of 1 MB has a million of them, and to write those down stops the server for seconds.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Text = Annotated[str, Field(min_length=1)]
Zero = Annotated[float, Field(ge=0, le=0)]
Integer = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class Form(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _one_unknown(cls, given: Any) -> Any:
        unknown = given.keys() - cls.model_fields.keys() if isinstance(given, dict) else ()
        if len(unknown) < 2:
            return given
        first = next(name for name in given if name in unknown)
        return {name: value for name, value in given.items() if name not in unknown or name == first}


class TextPart(Form):
    type: Literal["text"]
    text: str


class Message(Form):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)] | None = None
    reasoning: str | None = None  # of an earlier turn's assistant, as it was answered
    reasoning_content: str | None = None  # the same under its other name
    name: str | None = None  # taken and not used, as the template has no place for it
    refusal: None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""

    @property
    def size(self) -> int:
        """Characters of all its texts."""
        return len(self.text) + len(self.reasoning or "") + len(self.reasoning_content or "")


class StreamOptions(Form):
    include_usage: bool = False
    include_obfuscation: bool = False  # taken and not used


class Asked(Form):
    """What both kinds of requests have."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None  # 0 and -1: all tokens, as for other servers
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    stop: Text | Annotated[list[Text], Field(max_length=4)] | None = None
    seed: Integer | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    presence_penalty: Zero | None = None
    frequency_penalty: Zero | None = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    user: str | None = None  # taken and not used

    @property
    def limit_name(self) -> str:
        """Of the field that `limit` is taken from."""
        return "max_tokens"

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class TextFormat(Form):
    type: Literal["text"]


class ChatRequest(Asked):
    messages: Annotated[list[Message], Field(min_length=1, max_length=1_000, fail_fast=True)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    reasoning_budget: Annotated[int, Field(ge=0)] | None = None  # tokens of thinking, after which it is closed
    response_format: TextFormat | None = None
    modalities: Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    store: Literal[False] | None = None
    metadata: dict[str, Any] | None = None  # taken and not used
    service_tier: Literal["auto", "default"] | None = None

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def limit_name(self) -> str:
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"

    @property
    def alternatives(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


Token = Annotated[int, Field(ge=0, lt=2**31)]
Tokens = Annotated[list[Token], Field(min_length=1, fail_fast=True)]


class CompletionRequest(Asked):
    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, fail_fast=True)]
        | Tokens
        | Annotated[list[Tokens], Field(min_length=1, fail_fast=True)]
    )
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: Literal[False] | None = None
    suffix: None = None
    best_of: Literal[1] | None = None

    @property
    def limit(self) -> int | None:
        return self.max_tokens

    @property
    def alternatives(self) -> int | None:
        return self.logprobs

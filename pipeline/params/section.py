"""What a section of params.yaml is, and the kinds of values that several sections have."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import InputError

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Language = Annotated[str, Field(pattern="^[a-z]{2}$")]  # ISO 639-1
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]  # SHA-256


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def broken_rules(path: Path, error: ValidationError) -> InputError:
    """What a file's content breaks, a line for each rule: `file: section.key: value: rule`."""
    return InputError("\n".join(f"{path}: {_explain(detail)}" for detail in error.errors()))


def _explain(detail: Any) -> str:
    key = ".".join(str(part) for part in detail["loc"])
    match detail["type"]:
        case "missing":
            return f"{key}: is missing"
        case "value_error" if isinstance(detail["input"], dict):  # of a whole section, whose rule names the key
            return ": ".join(filter(None, (key, str(detail["ctx"]["error"]))))
        case "extra_forbidden":
            rule = "there is no such key"
        case _:
            rule = detail["msg"]
    value = repr(detail["input"])
    return f"{key or 'document'}: {value if len(value) <= 80 else value[:77] + '...'}: {rule}"

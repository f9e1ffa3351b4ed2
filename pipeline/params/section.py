"""What a section of params.yaml is, and the kinds of values that several sections have."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Language = Annotated[str, Field(pattern="^[a-z]{2}$")]  # ISO 639-1
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]  # SHA-256


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

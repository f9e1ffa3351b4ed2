"""Models that params ask for are read with the params."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError
from pipeline.model.planned import require_models
from pipeline.params import Params, load_params

ROOT = Path(__file__).parents[3]
SHIPPED = [ROOT / "params.yaml", *sorted((ROOT / "infra" / "profiles").glob("*.yaml"))]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_what_is_shipped_can_be_made(path: Path) -> None:
    require_models(load_params(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hiden_size": 48}, "params: base.model.hiden_size = 48: there is no such key; did you mean hidden_size?"),
        ({"hidden_size": "48"}, "params: base.model.hidden_size = '48': must be a whole number of at least 1"),
        ({"model_type": "gpt2"}, "params: base.model.model_type = 'gpt2': must be one of deepseek_v3, "),
        ({"colour": "red"}, "params: base.model.colour = 'red': there is no such key"),
        (
            {"rope_parameters": {"rope_type": "slow"}},
            "params: base.model.rope_parameters.rope_type = 'slow': must be one of",
        ),
    ],
)
def test_what_cannot_be_made_is_told_by_its_key(change: dict[str, Any], message: str) -> None:
    document = load_params(ROOT / "params.yaml").model_dump(by_alias=True)
    document["base"]["model"] |= change
    with pytest.raises(InputError) as error:
        require_models(Params.model_validate(document))
    assert str(error.value).startswith(message)


def test_a_student_s_model_is_read_too() -> None:
    document = load_params(ROOT / "params.yaml").model_dump(by_alias=True)
    document["distillation"]["students"]["small"]["base"]["model"]["layers"] = 3
    with pytest.raises(InputError, match=r"params: distillation\.students\.small\.base\.model\.layers = 3"):
        require_models(Params.model_validate(document))

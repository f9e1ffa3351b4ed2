"""The models that params ask for, read before anything runs: the stage that makes one may begin much later."""

from pipeline.model.config import ModelConfig
from pipeline.params import Params, Pretrain


def require_models(params: Params) -> None:
    """Raises InputError with key, value and rule for a model that cannot be made."""
    students = params.distillation.students
    bases = {f"distillation.students.{name}.base": student.base for name, student in students.items()}
    for key, base in {"base": params.base, **bases}.items():
        if isinstance(base, Pretrain):
            ModelConfig.from_params(base.model, f"{key}.model")

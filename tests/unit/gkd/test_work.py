"""The work of a step, counted by hand."""

import numpy as np

from pipeline.gkd.work import step_work
from pipeline.job import Work
from pipeline.model.flops import Arithmetic
from pipeline.params import OnPolicy
from pipeline.training.batches import Example


def test_the_student_writes_and_learns_and_the_teacher_reads() -> None:
    options = OnPolicy.model_validate(
        {"steps": 1, "prompts": 2, "lambda": 0.5, "max_new_tokens": 5, "learning_rate": 1e-3}
    )
    student, teacher = Arithmetic(100, 10, 1), Arithmetic(1000, 0, 0)
    # 2 prompt tokens and 3 of a completion each; of two places the second is the student's.
    examples = [Example(np.arange(5), np.arange(5) >= 2) for _ in range(2)]
    forward = 2 * (5 * 100 + 15 * 10 + 3)
    writing = (2 * 100 + 3 * 10 + 1) + (100 + 30 + 1) + (100 + 40 + 1)
    assert step_work(student, teacher, examples, options, 0) == Work(10, 3, 3 * forward + 2 * 5 * 1000 + writing)

"""What a step of on-policy distillation computes, counted from its texts."""

from collections.abc import Sequence

from pipeline.gkd.texts import is_students, prompt_length
from pipeline.job import Work
from pipeline.model.flops import Arithmetic
from pipeline.params import OnPolicy
from pipeline.training.batches import Example


def step_work(
    student: Arithmetic, teacher: Arithmetic, examples: Sequence[Example], options: OnPolicy, step: int
) -> Work:
    """Of step number `step`: the student writes its share of the texts, the teacher reads all, the student learns."""
    lengths = [len(example) for example in examples]
    predictions = sum(int(example.counts[1:].sum()) for example in examples)
    places = range(step * options.prompts, (step + 1) * options.prompts)
    written = [
        (prompt_length(example), len(example) - prompt_length(example))
        for place, example in zip(places, examples, strict=True)
        if is_students(place, options.share)
    ]
    return Work(
        trained_tokens=sum(lengths),
        generated_tokens=sum(completion for _, completion in written),
        flops=student.training(lengths, predictions)
        + teacher.forward(lengths, predictions)
        + sum(student.generation(prompt, [completion]) for prompt, completion in written),
    )

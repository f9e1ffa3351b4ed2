"""A registered release as MLflow loads it: a list of questions in, thinking and answer of each out.

MLflow stores this very file with every version and runs it where the version is loaded, by whatever is installed there,
years from now maybe. So it needs nothing of this project, only transformers, of which the parity gate has shown that it
reads the release as we do. Nothing is pickled.
"""

import re
from typing import Any

from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

COMPLETION = re.compile(r"<think>(.*?)</think><answer>(.*?)</answer>", re.DOTALL)


class Answering(PythonModel):
    def load_context(self, context: Any) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = context.artifacts["release"]
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()

    # MLflow reads the model's signature off these types, and allows to leave out what is not used.
    def predict(self, model_input: list[str]) -> list[dict[str, str]]:
        return [self._answer(question) for question in model_input]

    def _answer(self, question: str) -> dict[str, str]:
        """Sampled as generation_config.json says. Where a completion does not parse it is all thinking."""
        prompt = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        written = self._model.generate(**prompt, tokenizer=self._tokenizer)[0, prompt["input_ids"].shape[1] :]
        text = self._tokenizer.decode(written).removesuffix(self._tokenizer.eos_token or "")
        match = COMPLETION.fullmatch(text)
        return {"thinking": match[1] if match else text, "answer": match[2] if match else ""}


set_model(Answering())

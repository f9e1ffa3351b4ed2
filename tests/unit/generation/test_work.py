"""Work of generation, for prompts as text."""

from pipeline import chat
from pipeline.generation.work import generation_work
from pipeline.model.config import ModelConfig
from pipeline.model.decoder import Decoder
from pipeline.model.flops import arithmetic
from pipeline.model.tokenizer import character_tokenizer


def test_prompts_are_read_once_and_completions_written() -> None:
    tokenizer = character_tokenizer(chat.CHAT_TEMPLATE)
    model = Decoder(
        ModelConfig.from_hf(
            {
                "model_type": "llama", "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32,
                "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
                "max_position_embeddings": 64, "tie_word_embeddings": True,
            }
        )
    )  # fmt: skip
    work = generation_work(model, tokenizer, ["abc", "<bos>z"], [[4, 2], [5]])
    flops = arithmetic(model)
    assert work.generated_tokens == 11
    assert work.flops == flops.generation(3, [4, 2]) + flops.generation(2, [5])

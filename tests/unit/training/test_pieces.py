from pathlib import Path

import torch
from safetensors.torch import save_file

from pipeline.training.pieces import Tensors, piece_name


def test_pieces_of_several_files_are_one_tensor_in_order(tmp_path: Path) -> None:
    numbers = torch.arange(12.0)
    files = [tmp_path / f"weights.{rank}.safetensors" for rank in range(2)]
    save_file({piece_name("a:exp_avg", 10): numbers[10:].clone(), "a:step": torch.tensor(3.0)}, files[0])
    save_file({piece_name("a:exp_avg", 0): numbers[:10].clone(), "b": torch.ones(2, 2)}, files[1])
    tensors = Tensors(files)
    assert sorted(tensors) == ["a:exp_avg", "a:step", "b"]
    assert len(tensors) == 3
    assert torch.equal(tensors["a:exp_avg"], numbers)
    assert torch.equal(tensors["b"], torch.ones(2, 2))
    assert tensors["a:step"].item() == 3

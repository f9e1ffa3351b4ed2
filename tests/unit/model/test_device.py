"""Which device a stage's model computes on."""

import pytest
import torch
from torch import nn

from pipeline.errors import InputError
from pipeline.model.device import lent, stage_device


def test_without_a_gpu_it_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert stage_device() == torch.device("cpu")


def test_each_rank_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert stage_device() == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert stage_device() == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(InputError, match=r"distributed\.ranks: must be at most 2, the GPUs of this machine"):
        stage_device()


def test_a_model_is_lent_to_a_device_and_stays_where_it_is() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    model[0].weight.requires_grad_(False)
    assert lent(model, torch.device("cpu")) is model
    there = lent(model, torch.device("meta"))
    assert {tensor.device.type for tensor in (*there.parameters(), *there.buffers())} == {"meta"}
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"cpu"}
    assert [each.requires_grad for each in there.parameters()] == [False, True, True, True]

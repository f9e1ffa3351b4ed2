"""kernels.cpp: how it is built, what stands in for it, and that its bits do not depend on the number of threads."""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from pipeline.model import native
from pipeline.model.attention import PackedSequences
from tests.unit.model.reference import CASES, decoder, positions_of, random_sequences

LENGTHS = [70, 3, 41, 1, 25]


@pytest.fixture
def _forgotten() -> Iterator[None]:
    """`library` asks again, and afterwards once more."""
    native._library.cache_clear()
    yield
    native._library.cache_clear()


def test_kernels_are_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    built = native.build()
    monkeypatch.setattr(native, "_run", lambda *command: pytest.fail(f"compiled again: {command}"))
    assert native.build() == built


@pytest.mark.usefixtures("_forgotten")
def test_without_a_compiler_a_warning_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(native, "COMPILERS", ("no-such-compiler",))
    with caplog.at_level(logging.WARNING):
        assert native.library() is None
        assert not native.usable(torch.zeros(1))
    assert caplog.text.count("no C++ compiler (no-such-compiler)") == 1


@pytest.mark.usefixtures("_forgotten")
def test_a_compiler_that_fails_is_named_with_its_last_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "cxx"
    compiler.write_text("#!/bin/sh\necho 'out of registers' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(native.CannotBuildError, match="cxx failed: out of registers"):
        native.build()


@pytest.mark.usefixtures("_forgotten")
def test_two_threads_that_ask_first_get_the_same_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(native, "cache_from_source", lambda source: str(tmp_path / "kernels.pyc"))
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda _: native.library(), range(2)))
    assert found[0] is not None
    assert found[0] is found[1]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_kernel_called_with_too_few_arguments_is_a_bug_of_ours() -> None:
    with pytest.raises(AssertionError, match="swiglu: 1 arguments"):
        native.call("swiglu", 1)


@pytest.mark.parametrize("case", CASES)
def test_the_decoder_is_the_same_with_and_without_kernels(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = _hidden_and_gradients(case)
    monkeypatch.setattr(native, "library", lambda: None)
    theirs = _hidden_and_gradients(case)
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_the_bits_do_not_depend_on_the_number_of_threads(bfloat16: bool) -> None:
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            results.append(_hidden_and_gradients("deepseek-query-latent-groups"))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(mine, reference) for mine, reference in zip(results[0], other, strict=True))


def _hidden_and_gradients(case: str) -> list[torch.Tensor]:
    model = decoder(case)
    hidden = model(torch.cat(random_sequences(LENGTHS)), positions_of(LENGTHS), PackedSequences(LENGTHS)).hidden
    learning = [parameter for name, parameter in model.named_parameters() if name != "lm_head.weight"]
    return [hidden.detach(), *torch.autograd.grad(hidden.sin().sum(), learning)]

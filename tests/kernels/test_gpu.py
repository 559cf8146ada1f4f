"""The portable backends on a CUDA device, held to the float64 reference on the CPU."""

from __future__ import annotations

import pytest
import torch

from dnassm.config import ModelConfig
from dnassm.kernels.selective_scan import selective_scan
from dnassm.model import DNAModel

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

BATCH, CHANNELS, STATES = 2, 64, 16
# eps32 * sqrt(L) for random-sign sums, a small multiple for exp and the order of the sums.
FLOAT32 = 5e-5


def _arguments(length: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "x": normal(BATCH, length, CHANNELS),
        "dt": normal(BATCH, length, CHANNELS),
        "A": -torch.arange(1.0, STATES + 1, dtype=torch.float64).repeat(CHANNELS, 1),
        "B": normal(BATCH, length, 1, STATES),
        "C": normal(BATCH, length, 1, STATES),
        "D": normal(CHANNELS),
        "z": normal(BATCH, length, CHANNELS),
        "dt_bias": normal(CHANNELS) - 4,
        "initial_state": normal(BATCH, CHANNELS, STATES),
    }


def _values_and_gradients(
    arguments: dict[str, torch.Tensor], *, backend: str
) -> dict[str, torch.Tensor]:
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in arguments.items()}
    y, state = selective_scan(**leaves, return_state=True, backend=backend)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view(y.shape)
    ((y * weights).sum() + state.sum()).backward()
    results = {f"d{name}": leaf.grad for name, leaf in leaves.items()}
    return {"y": y.detach(), "state": state.detach(), **results}


@pytest.mark.parametrize("length", [1, 65, 1000, 4097])
def test_the_portable_scan_on_a_gpu_equals_the_reference(length: int) -> None:
    arguments = _arguments(length)
    truth = _values_and_gradients(arguments, backend="reference")
    on_gpu = {name: tensor.float().cuda() for name, tensor in arguments.items()}
    found = _values_and_gradients(on_gpu, backend="portable")
    for name, expected in truth.items():
        error = (found[name].double().cpu() - expected).norm() / expected.norm()
        assert error < FLOAT32, name


def test_the_portable_scan_is_bitwise_the_same_on_every_run() -> None:
    on_gpu = {name: tensor.float().cuda() for name, tensor in _arguments(1000).items()}
    first = _values_and_gradients(on_gpu, backend="portable")
    second = _values_and_gradients(on_gpu, backend="portable")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_model_on_a_gpu_gives_the_logits_of_the_cpu() -> None:
    torch.manual_seed(0)
    model = DNAModel(ModelConfig(d_model=32, pattern="ms")).eval()
    tokens = torch.randint(0, 4, (2, 300))
    with torch.inference_mode():
        expected, _ = model(tokens)
        found, _ = model.cuda()(tokens.cuda())
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-4)

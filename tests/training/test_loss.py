"""The loss computed in parts, against torch's cross-entropy of all positions at once."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from tokenskip_lib.models.packing import IGNORED
from tokenskip_lib.training import loss
from tokenskip_lib.training.loss import response_loss

VOCABULARY, ROWS = 11, 7


@pytest.fixture(params=[1, 2 * VOCABULARY, 1000], ids=["a position at a time", "two at a time", "all at once"])
def parts(request, monkeypatch):
    monkeypatch.setattr(loss, "PART", request.param)


def both(logits: torch.Tensor, targets: torch.Tensor, tokens):
    """(loss, gradient) in parts, and by torch in float32."""
    labels = torch.cat([torch.tensor([IGNORED]), targets])[None]
    found = []
    for compute in (
        lambda own: response_loss(own, labels, tokens),
        lambda own: cross_entropy(own[0].float(), targets, reduction="sum") / (tokens or len(targets)),
    ):
        own = logits.clone().requires_grad_()
        value = 3 * compute(own)  # as a trainer scales it
        value.backward()
        found.append((value.detach(), own.grad))
    return found


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("tokens", [None, 5, torch.tensor(5)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_loss_and_gradient_are_those_of_torch(tokens, dtype, tolerance):
    generator = torch.Generator().manual_seed(0)
    logits = (5 * torch.randn(1, ROWS, VOCABULARY, generator=generator)).to(dtype)
    (ours, gradient), (theirs, wanted) = both(logits, torch.randint(VOCABULARY, (ROWS,), generator=generator), tokens)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6) and gradient.dtype == dtype
    assert torch.allclose(gradient.float(), wanted.float(), atol=tolerance) and wanted.abs().max() > 0.1


@pytest.mark.usefixtures("parts")
def test_a_target_that_is_all_but_impossible_has_a_finite_loss():
    logits = torch.zeros(1, 2, VOCABULARY)
    logits[0, :, 0] = 500.0
    (ours, gradient), (theirs, wanted) = both(logits, torch.tensor([1, 0]), None)
    assert ours == theirs == 3 * 250 and torch.equal(gradient, wanted)


def test_rows_without_a_response_have_no_loss_and_no_gradient():
    logits = torch.zeros(1, 0, VOCABULARY, requires_grad=True)
    value = response_loss(logits, torch.full((1, 3), IGNORED), 4)
    value.backward()
    assert value == 0 and logits.grad.shape == logits.shape


def test_without_gradients_none_is_kept():
    with torch.no_grad():
        value = response_loss(torch.zeros(1, 2, 4), torch.tensor([[1, 2]]))
    assert value.item() == pytest.approx(torch.tensor(4.0).log().item()) and not value.requires_grad

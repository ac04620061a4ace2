"""Rounding to 8-bit floats: each rank keeps its own change, however weak it is beside the others."""

import pytest
import torch
from safetensors.torch import save_file

from tokenskip_lib.core.records import InputError
from tokenskip_lib.models.adapters import WEIGHTS
from tokenskip_lib.models.rounding import round_adapter, rounded


def test_a_weak_rank_beside_a_strong_one_keeps_its_change():
    torch.manual_seed(0)
    a, b = torch.randn(3, 64), torch.randn(64, 3) * torch.tensor([1.0, 1e-4, 0.0])
    made = rounded({"q.lora_A.weight": a, "q.lora_B.weight": b}, 8)
    new_a, new_b = (made[f"q.lora_{side}.weight"].float() for side in "AB")
    for rank in range(3):
        wanted = 8 * torch.outer(b[:, rank], a[rank])
        assert (torch.outer(new_b[:, rank], new_a[rank]) - wanted).norm() <= 0.05 * wanted.norm()


def test_what_is_no_lora_of_a_linear_layer_is_refused(make_adapter, tmp_path):
    adapter = make_adapter(0)
    save_file({"model.embed_tokens.lora_embedding_A": torch.ones(2, 3)}, adapter / WEIGHTS)
    with pytest.raises(InputError, match=r"changes more than linear layers .*lora_embedding_A"):
        round_adapter(adapter, tmp_path)

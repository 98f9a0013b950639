import torch
from torch.nn import functional as F

from engine.model.attention import bidirectional_attention, causal_attention, causal_mask


def test_attention_accepts_kernel_results_that_are_laid_out_by_token(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(4, 6, 8, generator=generator)
    keys, values = torch.randn(2, 2, 10, 8, generator=generator)
    mask = causal_mask(4, 6, None, torch.device("cpu"))
    attend = F.scaled_dot_product_attention

    def by_token(*args, **kwargs):  # as the memory-efficient kernel on a GPU
        return attend(*args, **kwargs).transpose(1, 2).contiguous().transpose(1, 2)

    expected = [
        bidirectional_attention(queries, keys, values),
        causal_attention(queries, keys, values, mask),
    ]
    monkeypatch.setattr(F, "scaled_dot_product_attention", by_token)
    assert torch.equal(bidirectional_attention(queries, keys, values), expected[0])
    assert torch.equal(causal_attention(queries, keys, values, mask), expected[1])

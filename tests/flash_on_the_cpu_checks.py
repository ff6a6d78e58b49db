"""What public scripts ask of FlashAttention, each as a function.

cuda_on_the_cpu_checks.py runs them with its own.
"""

import torch
import torch.nn.functional as F

CUDA = torch.device("cuda", 0)


def close(a, b, tolerance=1e-5):
    assert a.shape == b.shape, (a.shape, b.shape)
    assert (a.float() - b.float()).abs().max() < tolerance


def attention_of(q, k, v, **options):
    """torch's own, on [B, T, H, K]."""
    moved = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(*moved, enable_gqa=True, **options).transpose(1, 2)


def queries_and_keys(heads=4, groups=2, rows=8):
    torch.manual_seed(0)
    q = torch.randn(2, rows, heads, 16, device="cuda", dtype=torch.bfloat16)
    k, v = torch.randn(2, 2, rows, groups, 16, device=CUDA)
    return q, k, v


# --- Devices ---


def check_flash_attention():
    from flash_attn import flash_attn_func as second
    from flash_attn.cute import flash_attn_func as fourth
    from flash_attn_interface import flash_attn_func as third

    q, k, v = queries_and_keys()
    expected = attention_of(q, k, v, is_causal=True)
    for attend in (second, third, fourth):
        close(attend(q, k, v, causal=True), expected)
    close(second(q, k, v, 0.0, 0.5, True), attention_of(q, k, v, is_causal=True, scale=0.5))
    close(third(q, k, v, softmax_scale=0.5), attention_of(q, k, v, scale=0.5))
    close(third(q, k, v, causal=True, softcap=1e5), expected)


def check_flash_attention_by_place():
    from flash_attn import flash_attn_func as second
    from flash_attn_interface import flash_attn_func as third

    q, k, v = queries_and_keys()
    halved = attention_of(q, k, v, is_causal=True, scale=0.5)
    close(third(q, k, v, 0.5, True), halved)
    close(third(q, k, v, 0.5, True, None, None, None, None, (-1, -1), 0), halved)
    near = third(q, k, v, 0.5, True, window_size=(3, 0), num_splits=4)
    close(third(q, k, v, 0.5, True, None, None, None, None, (3, 0)), near)
    close(second(q, k, v, 0.0, 0.5, True, (3, 0)), near)


def check_flash_attention_refuses_what_it_does_not_know():
    from flash_attn_interface import flash_attn_func

    q, k, v = queries_and_keys()
    flash_attn_func(q, k, v, causal=True, qv=None, attention_chunk=0, deterministic=True)
    for settings in ({"qv": q}, {"attention_chunk": 4}, {"is_causal": True}):
        try:
            flash_attn_func(q, k, v, **settings)
        except TypeError as error:
            assert next(iter(settings)) in str(error)
        else:
            raise AssertionError(f"{settings} were taken")


def check_flash_attention_in_a_window():
    from flash_attn_interface import flash_attn_func

    q, k, v = queries_and_keys()
    places = torch.arange(8)
    distance = places[:, None] - places[None, :]
    mask = (distance >= 0) & (distance <= 3)
    found = flash_attn_func(q, k, v, causal=True, window_size=(3, 0))
    close(found, attention_of(q, k, v, attn_mask=mask))
    capped = flash_attn_func(q, k, v, causal=True, window_size=(3, 0), softcap=1e5)
    close(capped, found)


def check_flash_attention_of_packed_sequences():
    from flash_attn_interface import flash_attn_varlen_func

    q, k, v = (x[0] for x in queries_and_keys())
    starts = torch.tensor([0, 3, 3, 8], dtype=torch.int32, device="cuda")
    found = flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens_q=starts,
        cu_seqlens_k=starts,
        max_seqlen_q=5,
        max_seqlen_k=5,
        causal=True,
    )
    by_place = flash_attn_varlen_func(q, k, v, starts, starts, 5, 5, causal=True)
    for first, last in ((0, 3), (3, 8)):
        piece = [x[None, first:last] for x in (q, k, v)]
        expected = attention_of(*piece, is_causal=True)[0]
        close(found[first:last], expected)
        close(by_place[first:last], expected)


def check_flash_attention_is_trained_through():
    from flash_attn_interface import flash_attn_func, flash_attn_varlen_func

    q, k, v = (x.requires_grad_() for x in queries_and_keys())
    flash_attn_func(q, k, v, causal=True).sum().backward()
    starts = torch.tensor([0, 8])
    flash_attn_varlen_func(q[0], k[0], v[0], starts, starts, 8, 8, causal=True).sum().backward()
    assert q.grad.abs().sum() > 0 and v.grad.abs().sum() > 0

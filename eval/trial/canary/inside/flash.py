"""FlashAttention 2, 3 and 4 by torch's own attention, in the interface of the packages.

Tensors are [B, T, H, K]: batch, time, heads, size of a head; packed sequences are [T, H, K] with
the places where each begins. Keys and values may have fewer heads, each for a group of queries.
"""

import torch
import torch.nn.functional as F

VERSION = "3.0.0"
EVERYTHING = (-1, -1)
# Settings by place, in FlashAttention 2 and in FlashAttention 3.
SECOND_BY_PLACE = (
    "dropout_p",
    "softmax_scale",
    "causal",
    "window_size",
    "softcap",
    "alibi_slopes",
    "deterministic",
    "return_attn_probs",
)
THIRD_BY_PLACE = (
    "softmax_scale",
    "causal",
    "qv",
    "q_descale",
    "k_descale",
    "v_descale",
    "window_size",
    "attention_chunk",
    "softcap",
    "num_splits",
    "pack_gqa",
    "deterministic",
    "sm_margin",
    "return_attn_probs",
)
# How a GPU goes about it: what comes out is the same.
WITHOUT_EFFECT = (
    "max_seqlen_q",
    "max_seqlen_k",
    "deterministic",
    "num_splits",
    "pack_gqa",
    "sm_margin",
    "return_softmax_lse",  # read below
)


def flash_attn_func(q, k, v, *rest, **options):
    """Attention of q [B, T, H, K] over k, v [B, S, G, K]; returns [B, T, H, K].

    With `return_attn_probs` also the log-sum-exp [B, H, T] of the scores, and None for the rest
    that FlashAttention 2 returns."""
    settings = _settings(rest, options)
    out = _attend(q, k, v, settings)
    if settings["return_attn_probs"]:
        return out, _log_sum_exp(q, k, settings), None
    return out


def flash_attn_varlen_func(q, k, v, cu_seqlens_q=None, cu_seqlens_k=None, *rest, **options):
    """Attention within each sequence of a packed batch; q [T, H, K], k, v [S, G, K].

    Sequence i holds the queries cu_seqlens_q[i] to cu_seqlens_q[i + 1]."""
    lengths = 2 if "max_seqlen_q" not in options else 0  # max_seqlen_q and max_seqlen_k
    settings = _settings(rest[lengths:], options)
    out = torch.zeros(*q.shape[:-1], v.size(-1), dtype=q.dtype)
    starts_q = cu_seqlens_q.tolist()
    starts_k = starts_q if cu_seqlens_k is None else cu_seqlens_k.tolist()
    pieces = []
    for i in range(len(starts_q) - 1):
        rows = slice(starts_q[i], starts_q[i + 1])
        columns = slice(starts_k[i], starts_k[i + 1])
        if rows.stop > rows.start:
            pieces.append(_attend(q[None, rows], k[None, columns], v[None, columns], settings)[0])
    covered = torch.cat([out[: starts_q[0]], *pieces])
    out = torch.cat([covered, out[len(covered) :]])
    return (out, None, None) if settings["return_attn_probs"] else out


def flash_attn_qkvpacked_func(qkv, *rest, **options):
    """As flash_attn_func, of qkv [B, T, 3, H, K]."""
    return flash_attn_func(*qkv.unbind(2), *rest, **options)


def flash_attn_kvpacked_func(q, kv, *rest, **options):
    """As flash_attn_func, of q [B, T, H, K] and kv [B, S, 2, G, K]."""
    return flash_attn_func(q, *kv.unbind(2), *rest, **options)


def flash_attn_varlen_qkvpacked_func(qkv, cu_seqlens, max_seqlen=None, *rest, **options):
    """As flash_attn_varlen_func, of qkv [T, 3, H, K]."""
    q, k, v = qkv.unbind(1)
    longest = (max_seqlen, max_seqlen)
    return flash_attn_varlen_func(q, k, v, cu_seqlens, cu_seqlens, *longest, *rest, **options)


def _settings(rest, options):
    """The settings of a call. Raises TypeError for one that is not understood: without it
    attention might see the future, or not see what it should."""
    settings = {
        "dropout_p": 0.0,
        "softmax_scale": None,
        "causal": False,
        "window_size": EVERYTHING,
        "softcap": 0.0,
        "return_attn_probs": False,
    }
    by_place = THIRD_BY_PLACE if _is_third(rest) else SECOND_BY_PLACE
    if len(rest) > len(by_place):
        raise TypeError(f"flash attention: {len(rest)} settings by place, known are {by_place}")
    given = dict(zip(by_place, rest, strict=False)) | options
    for name, value in given.items():
        if name in settings:
            settings[name] = settings[name] if value is None else value
        elif name not in WITHOUT_EFFECT and not _is_off(value):
            raise TypeError(f"flash attention: the setting {name} has no stand-in on the CPU")
    settings["return_attn_probs"] |= bool(options.get("return_softmax_lse"))
    return settings


def _is_third(rest):
    """Whether settings by place are those of FlashAttention 3, which has no dropout.

    Its second one is `causal`, where FlashAttention 2 has the scale."""
    starts = bool(rest) and (rest[0] is None or isinstance(rest[0], bool))
    return starts or (len(rest) > 1 and isinstance(rest[1], bool))


def _is_off(value):
    return value is None or (isinstance(value, (bool, int, float)) and value == 0)


def _attend(q, k, v, settings):
    queries, keys, values = (x.transpose(1, 2) for x in (q, k, v))
    grouped = keys.size(1) != queries.size(1)
    if settings["softcap"]:
        return _capped(q, k, v, settings)
    square = queries.size(2) == keys.size(2)
    mask = None
    if tuple(settings["window_size"]) != EVERYTHING or (settings["causal"] and not square):
        mask = _allowed(queries.size(2), keys.size(2), settings)
    mixed = F.scaled_dot_product_attention(
        queries,
        keys,
        values,
        attn_mask=mask,
        is_causal=settings["causal"] and mask is None,
        scale=settings["softmax_scale"],
        enable_gqa=grouped,
    )
    return mixed.transpose(1, 2)


def _allowed(rows, columns, settings):
    """Mask [rows, columns]: causal means that the last query sees the last key."""
    places = torch.arange(rows)[:, None] + columns - rows
    keys = torch.arange(columns)[None, :]
    left, right = settings["window_size"]
    allowed = torch.ones(rows, columns, dtype=torch.bool)
    if settings["causal"]:
        allowed &= keys <= places
    if left is not None and left >= 0:
        allowed &= keys >= places - left
    if right is not None and right >= 0:
        allowed &= keys <= places + right
    return allowed


def _scores(q, k, settings):
    """Scores [B, H, T, S], before the softmax, with minus infinity where a key is not seen."""
    queries = q.transpose(1, 2)
    keys = k.transpose(1, 2)
    keys = keys.repeat_interleave(queries.size(1) // keys.size(1), dim=1)
    scale = settings["softmax_scale"] or q.size(-1) ** -0.5
    scores = scale * (queries @ keys.transpose(-1, -2))
    if settings["softcap"]:
        scores = settings["softcap"] * torch.tanh(scores / settings["softcap"])
    allowed = _allowed(q.size(1), k.size(1), settings)
    return scores.masked_fill(~allowed, float("-inf"))


def _capped(q, k, v, settings):
    weights = _scores(q, k, settings).softmax(-1)
    values = v.transpose(1, 2).repeat_interleave(q.size(2) // v.size(2), dim=1)
    return (weights @ values).transpose(1, 2)


def _log_sum_exp(q, k, settings):
    return _scores(q, k, settings).logsumexp(-1)

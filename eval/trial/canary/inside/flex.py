"""FlexAttention without a compiler: the mask and the scores in full."""

import torch

VERSION = ""


class BlockMask:
    """What create_block_mask makes: the rule, for as many queries and keys."""

    def __init__(self, mask_mod, shape):
        self.mask_mod = mask_mod
        self.shape = shape

    @classmethod
    def from_kv_blocks(cls, kv_num_blocks, kv_indices, *full, BLOCK_SIZE=128, mask_mod=None):
        """The keys of some blocks: those of `kv_indices`, by the rule, and the full ones.

        `kv_num_blocks` [B, H, rows] counts the blocks of each row of queries, and
        `kv_indices` [B, H, rows, columns] names them."""
        size = BLOCK_SIZE if isinstance(BLOCK_SIZE, int) else BLOCK_SIZE[0]
        partial = _named_blocks(kv_num_blocks, kv_indices)
        whole = _named_blocks(*full[:2]) if len(full) >= 2 else torch.zeros_like(partial)

        def rule(b, h, q, kv):
            here = (b.clamp(max=len(partial) - 1), h * 0, q // size, kv // size)
            allowed = partial[here]
            if mask_mod is not None:
                allowed = allowed & mask_mod(b, h, q, kv)
            return allowed | whole[here]

        length = partial.size(-1) * size
        return cls(rule, (*partial.shape[:2], partial.size(-2) * size, length))

    def to(self, *args, **kwargs):
        """Itself: it holds no tensors."""
        return self


def _named_blocks(counts, indices):
    """Bool [B, H, rows, columns]: the first `counts` of `indices` in each row."""
    columns = indices.size(-1)
    kept = torch.arange(columns) < counts[..., None]
    named = torch.zeros(indices.shape, dtype=torch.int64)
    named.scatter_add_(-1, indices.long(), kept.long())
    return named > 0


def create_block_mask(mask_mod, B, H, Q_LEN, KV_LEN, *args, **kwargs):
    """The mask of a rule, for B batches and H heads (None for any number)."""
    return BlockMask(mask_mod, (B or 1, H or 1, Q_LEN, KV_LEN))


def create_mask(mod_fn, B, H, Q_LEN, KV_LEN, *args, **kwargs):
    """Bool [B, H, Q_LEN, KV_LEN] of a rule."""
    shape = (B or 1, H or 1, Q_LEN, KV_LEN)
    return mod_fn(*_grid(*shape)).expand(shape)


def noop_mask(batch, head, q_idx, kv_idx):
    """Every query sees every key."""
    return torch.ones((), dtype=torch.bool)


def and_masks(*rules):
    """The rule that all of `rules` agree on."""

    def rule(b, h, q, kv):
        allowed = noop_mask(b, h, q, kv)
        for one in rules:
            allowed = allowed & one(b, h, q, kv)
        return allowed

    return rule


def or_masks(*rules):
    """The rule that one of `rules` is enough for."""

    def rule(b, h, q, kv):
        allowed = ~noop_mask(b, h, q, kv)
        for one in rules:
            allowed = allowed | one(b, h, q, kv)
        return allowed

    return rule


def _grid(batches, heads, rows, columns):
    """Indices b, h, q, kv, each along its own axis of [B, H, T, S]."""
    sizes = (batches, heads, rows, columns)
    grid = []
    for axis, size in enumerate(sizes):
        shape = [1, 1, 1, 1]
        shape[axis] = size
        grid.append(torch.arange(size).view(shape))
    return grid


def flex_attention(query, key, value, score_mod=None, block_mask=None, scale=None, **options):
    """Attention of query [B, H, T, K] over key, value [B, G, S, K]; returns [B, H, T, K].

    `score_mod` changes a score, `block_mask` says which keys a query sees. With `return_lse` also
    the log-sum-exp [B, H, T] of the scores."""
    groups = query.size(1) // key.size(1)
    keys = key.repeat_interleave(groups, dim=1)
    values = value.repeat_interleave(groups, dim=1)
    scores = (scale or query.size(-1) ** -0.5) * (query @ keys.transpose(-1, -2))
    grid = _grid(*scores.shape)
    if score_mod is not None:
        scores = score_mod(scores, *grid)
    if block_mask is not None and block_mask.mask_mod is not None:
        scores = scores.masked_fill(~block_mask.mask_mod(*grid), float("-inf"))
    weights = scores.softmax(-1).nan_to_num()  # a query that sees no key gets zeros
    mixed = weights @ values
    return (mixed, scores.logsumexp(-1)) if options.get("return_lse") else mixed

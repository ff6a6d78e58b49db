"""The plain side of the speed benchmarks: the mathematics of train_gpt.py as one writes it first.

Eager, one matrix at a time: separate query, key and value products, Muon by parameter, AdamW by
tensor, the EMA copied to the host at every step, one evaluation window at a time with all its
logits, and the best of three general compressors. It covers the model without mechanisms.

Shape suffixes are those of train_gpt.py.
"""

import lzma

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import train_gpt as tg


def rotate(x_BTHK: Tensor, rotary: tg.Rotary) -> Tensor:
    K = x_BTHK.size(-1)

    def second_half(table_TK: Tensor) -> Tensor:  # in the first, the signs are ready for a roll
        return table_TK[:, None, K // 2 :].to(x_BTHK.dtype)

    cos, sin = map(second_half, rotary)
    a, b = x_BTHK.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


class PlainAttention(tg.Attention):
    def forward(self, x_BTD: Tensor, rotary: tg.Rotary, tail: int) -> Tensor:
        """[B, T, D]: all positions, whatever `tail` asks for."""
        B, T, _ = x_BTD.shape
        queries = self.q(x_BTD).view(B, T, self.heads, self.head_size)
        keys = self.k(x_BTD).view(B, T, self.kv_heads, self.head_size)
        values = self.v(x_BTD).view(B, T, self.kv_heads, self.head_size)
        gain = self.q_gain[:, None].to(x_BTD.dtype)
        q = rotate(tg.rms_norm(queries), rotary) * gain
        k = rotate(tg.rms_norm(keys), rotary)
        groups = self.heads // self.kv_heads
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.repeat_interleave(groups, dim=2).transpose(1, 2),
            values.repeat_interleave(groups, dim=2).transpose(1, 2),
            is_causal=True,
        )
        y = y.transpose(1, 2)
        if self.xsa:
            unit = F.normalize(values, dim=-1)
            unit = unit.repeat_interleave(groups, dim=2)
            y = y - (y * unit).sum(-1, keepdim=True) * unit
        return self.out(y.reshape(B, T, -1))


class PlainBlock(tg.Block):
    def forward(self, x_BTD: Tensor, around: tg.Surroundings, tail: int) -> Tensor:
        """[B, T, D]: all positions, whatever `tail` asks for."""
        dtype = x_BTD.dtype
        mix = self.mix.to(dtype)
        x = mix[0] * x_BTD + mix[1] * around.stem_BTD
        attended = self.attention(tg.rms_norm(x), around.rotary, tail)
        x = x + self.attention_scale.to(dtype) * attended
        widened = self.fc(tg.rms_norm(x))
        mlp = self.proj(F.leaky_relu(widened, self.slope).square())
        return x + self.mlp_scale.to(dtype) * mlp


class PlainGPT(tg.GPT):
    def __init__(self, cfg: tg.ModelConfig):
        super().__init__(cfg)
        for block in self.blocks:
            block.__class__ = PlainBlock
            block.attention.__class__ = PlainAttention

    def forward(
        self, ids_BT: Tensor, targets_BT: Tensor, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Mean next-token cross-entropy, nats, with activations of `dtype`."""
        logits_BTV = self.logits(self.hidden(ids_BT, dtype=dtype)[0])
        return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())


def plain_step(
    model: PlainGPT, batch: list[tuple[Tensor, Tensor]], dtype: torch.dtype = torch.float32
) -> Tensor:
    """One micro-batch after another; the mean loss of the batch, nats."""
    losses = []
    for inputs, targets in batch:
        loss = model(inputs, targets, dtype) / len(batch)
        loss.backward()
        losses.append(loss.detach())
    return torch.stack(losses).sum()


class PlainOptimizers:
    """Muon matrix by matrix, AdamW tensor by tensor."""

    def __init__(self, model: torch.nn.Module, cfg: tg.TrainingConfig):
        groups = tg.partition(model, tg.PARAMETER_ROLES, "optimizer groups")
        self.model = model
        self.cfg = cfg
        self.matrices = list(groups["matrix"].values())
        self.momenta = [torch.zeros_like(p) for p in self.matrices]
        self.adam = torch.optim.AdamW(
            [
                {
                    "params": list(groups["embed"].values()),
                    "base_lr": cfg.embed_lr,
                    "weight_decay": cfg.embed_weight_decay,
                },
                {
                    "params": list(groups["scalar"].values()),
                    "base_lr": cfg.scalar_lr,
                    "weight_decay": cfg.scalar_weight_decay,
                },
            ],
            betas=(cfg.adam_beta1, cfg.adam_beta2),
            eps=1e-8,
            foreach=False,
        )

    @torch.no_grad()
    def step(self, step: int, lr_scale: float) -> None:
        for group in self.adam.param_groups:
            group["lr"] = group["base_lr"] * lr_scale
        self.adam.step()
        momentum = tg.muon_momentum(step, self.cfg)
        for p, buffer in zip(self.matrices, self.momenta, strict=True):
            self.muon(p, buffer, self.cfg.muon_lr * lr_scale, momentum)
        self.model.zero_grad(set_to_none=True)

    def muon(self, p: Tensor, buffer: Tensor, lr: float, momentum: float) -> None:
        """Nesterov momentum, then Newton-Schulz, on one matrix [R, C]."""
        rows, columns = p.shape
        buffer.mul_(momentum).add_(p.grad)
        nesterov = p.grad.add(buffer, alpha=momentum)
        if nesterov.is_cuda:
            nesterov = nesterov.bfloat16()
        update = tg.newton_schulz(nesterov[None], self.cfg.newton_schulz_steps)[0]
        p.mul_(1 - lr * self.cfg.weight_decay)
        p.add_(update, alpha=-lr * max(1.0, rows / columns) ** 0.5)


class PlainAverage:
    """EMA in host memory."""

    def __init__(self, model: torch.nn.Module, cfg: tg.TrainingConfig):
        self.model = model
        self.decay = cfg.ema_decay
        self.ema = {name: p.detach().cpu().clone() for name, p in model.state_dict().items()}

    def update(self, snapshot: bool) -> None:
        for name, p in self.model.state_dict().items():
            self.ema[name].mul_(self.decay).add_(p.detach().cpu(), alpha=1 - self.decay)


@torch.inference_mode()
def plain_scores(
    model: tg.GPT, stream: np.ndarray, cfg: tg.ScoringConfig, ranks: tg.Ranks
) -> np.ndarray:
    """nll float64 [N - 1], nats: one window at a time."""
    nll = np.zeros(len(stream) - 1)
    windows = tg.plan_windows(len(stream) - 1, cfg.eval_seq_len, cfg.eval_stride)
    for _, start, first, end in windows.rows():
        tokens = stream[start : end + 1].astype(np.int64)
        ids = torch.from_numpy(tokens).to(ranks.device)
        hidden, _ = model.hidden(ids[None, :-1], dtype=ranks.score_dtype)
        logits = model.logits(hidden)[0, first - start :]
        log_p = torch.log_softmax(logits.double(), dim=-1)
        targets = ids[first - start + 1 :, None]
        nll[first:end] = -log_p.gather(1, targets).squeeze(1).cpu().numpy()
        -(log_p.exp() * log_p).sum(-1).cpu()  # the entropy that the n-gram gate asks for
    return nll


def compressed_bytes(tensors: dict[str, tg.Stored]) -> dict[str, int]:
    """Size of quantised weights under each general compressor.

    Integer symbols and the byte planes of floats come first, then the row scales, in one block.
    """
    # a machine with a GPU may lack them
    import brotli
    import zstandard

    in_order = [stored.values for stored in tensors.values()]
    in_order += [stored.scales for stored in tensors.values() if stored.scales is not None]
    planes = []
    for tensor in in_order:
        planes += [plane.tobytes() for plane in tg.byte_planes(tensor)]
    data = b"".join(planes)
    # lc 0: neighbours say little about weights
    lzma_filter = {
        "id": lzma.FILTER_LZMA2,
        "preset": 9 | lzma.PRESET_EXTREME,
        "lc": 0,
        "lp": 0,
        "pb": 0,
    }
    zstd = zstandard.ZstdCompressor(level=22, write_content_size=False, write_checksum=False)
    return {
        "lzma": len(lzma.compress(data, format=lzma.FORMAT_RAW, filters=[lzma_filter])),
        "zstd": len(zstd.compress(data)),
        "brotli": len(brotli.compress(data, quality=11, lgwin=24)),
    }


def flops_per_token(model: tg.ModelConfig, seq_len: int) -> float:
    """Of one token in training, on rows of seq_len tokens; a multiply-add counts as 2.

    Forward: 2 for each weight of every product that a token meets (embedding lookups are free),
    plus attention, 2 products of T/2 mean visible keys. Forward and backward: three times that
    (PaLM, Chowdhery et al. 2022, appendix B).
    """
    D = model.model_dim
    head_size = D // model.num_heads
    visits = len(tg.plan_depth(model))
    projections = D * head_size * (2 * model.num_heads + 2 * model.num_kv_heads)
    mlp = 2 * D * model.mlp_hidden
    enrichment = 2 * D * model.pre_enrich_hidden
    bigram = model.bigram_dim * D
    head = model.vocab_size * D
    weights = visits * (projections + mlp) + enrichment + bigram + head
    attention = visits * 2 * 2 * D * seq_len / 2
    return 3 * (2 * weights + attention)

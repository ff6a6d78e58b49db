"""The plain side of the speed benchmarks: the same mathematics as train_gpt.py, written the way one writes it first.

Eager, one matrix at a time: separate query, key and value products, Muon per parameter, AdamW per tensor, the EMA
copied to the host at every step, one evaluation window at a time with all its logits, and the best of three general compressors."""

import lzma

import brotli
import numpy as np
import torch
import torch.nn.functional as F
import zstandard
from torch import Tensor

import train_gpt as tg


def rotate(x_BTHK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    a, b = x_BTHK.chunk(2, dim=-1)
    cos, sin = (t[:, None, x_BTHK.size(-1) // 2 :].to(x_BTHK.dtype) for t in (cos_TK, sin_TK))
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


class PlainAttention(tg.Attention):
    def forward(self, x_BTD: Tensor, rotary: tuple[Tensor, Tensor], tail: int) -> Tensor:
        B, T, _ = x_BTD.shape
        q = self.q(x_BTD).view(B, T, self.heads, self.head_size)
        k = self.k(x_BTD).view(B, T, self.kv_heads, self.head_size)
        v = self.v(x_BTD).view(B, T, self.kv_heads, self.head_size)
        q = rotate(tg.rms_norm(q), *rotary) * self.q_gain[:, None].to(x_BTD.dtype)
        k = rotate(tg.rms_norm(k), *rotary)
        groups = self.heads // self.kv_heads
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.repeat_interleave(groups, dim=2).transpose(1, 2),
            v.repeat_interleave(groups, dim=2).transpose(1, 2),
            is_causal=True,
        ).transpose(1, 2)
        if self.xsa:
            unit = F.normalize(v, dim=-1).repeat_interleave(groups, dim=2)
            y = y - (y * unit).sum(-1, keepdim=True) * unit
        return self.out(y.reshape(B, T, -1))


class PlainBlock(tg.Block):
    def forward(self, x: Tensor, stem: Tensor, rotary: tuple[Tensor, Tensor], tail: int) -> Tensor:
        mix, a, b = (
            self.mix.to(x.dtype),
            self.attention_scale.to(x.dtype),
            self.mlp_scale.to(x.dtype),
        )
        x = mix[0] * x + mix[1] * stem
        x = x + a * self.attention(tg.rms_norm(x), rotary, tail)
        return x + b * self.proj(F.leaky_relu(self.fc(tg.rms_norm(x)), self.slope).square())


class PlainGPT(tg.GPT):
    def __init__(self, cfg: tg.Config):
        super().__init__(cfg)
        for block in self.blocks:
            block.__class__, block.attention.__class__ = PlainBlock, PlainAttention

    def forward(self, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        return F.cross_entropy(
            self.logits(self.hidden(ids_BT)[0]).flatten(0, 1), targets_BT.flatten()
        )


def plain_step(model: PlainGPT, batch: list[tuple[Tensor, Tensor]]) -> Tensor:
    """One micro-batch after another; the mean loss of the batch, nats."""
    losses = []
    for inputs, targets in batch:
        loss = model(inputs, targets) / len(batch)
        loss.backward()
        losses.append(loss.detach())
    return torch.stack(losses).sum()


class PlainOptimizers:
    def __init__(self, model: torch.nn.Module, cfg: tg.Config):
        groups, self.cfg = tg.partition(model, tg.PARAM_GROUPS, "optimizer groups"), cfg
        self.matrices = list(groups["matrix"].values())
        self.momenta = [torch.zeros_like(p) for p in self.matrices]
        by_lr = [
            {"params": list(groups[g].values()), "base_lr": lr}
            for g, lr in (("embed", cfg.embed_lr), ("scalar", cfg.scalar_lr))
        ]
        self.adam = torch.optim.AdamW(
            by_lr,
            betas=(cfg.adam_beta1, cfg.adam_beta2),
            eps=1e-8,
            weight_decay=cfg.weight_decay,
            foreach=False,
        )
        self.model = model

    @torch.no_grad()
    def step(self, step: int, lr_scale: float) -> None:
        for group in self.adam.param_groups:
            group["lr"] = group["base_lr"] * lr_scale
        self.adam.step()
        lr, progress = (
            self.cfg.muon_lr * lr_scale,
            min(1.0, step / max(1, self.cfg.muon_momentum_warmup_steps)),
        )
        momentum = self.cfg.muon_momentum_start + progress * (
            self.cfg.muon_momentum - self.cfg.muon_momentum_start
        )
        for p, buffer in zip(self.matrices, self.momenta, strict=True):
            buffer.mul_(momentum).add_(p.grad)
            update = p.grad.add(buffer, alpha=momentum)
            update = tg.newton_schulz(
                (update.bfloat16() if update.is_cuda else update)[None],
                self.cfg.newton_schulz_steps,
            )[0]
            p.mul_(1 - lr * self.cfg.weight_decay).add_(
                update, alpha=-lr * max(1.0, p.size(0) / p.size(1)) ** 0.5
            )
        self.model.zero_grad(set_to_none=True)


class PlainAverage:
    """EMA in host memory."""

    def __init__(self, model: torch.nn.Module, cfg: tg.Config):
        self.model, self.decay = model, cfg.ema_decay
        self.ema = {name: p.detach().cpu().clone() for name, p in model.state_dict().items()}

    def update(self, snapshot: bool) -> None:
        for name, p in self.model.state_dict().items():
            self.ema[name].mul_(self.decay).add_(p.detach().cpu(), alpha=1 - self.decay)


@torch.inference_mode()
def plain_scores(
    model: tg.GPT, stream: np.ndarray, cfg: tg.Config, device: torch.device
) -> np.ndarray:
    """nll float64 [N - 1], nats: one window at a time."""
    nll = np.zeros(len(stream) - 1)
    for start, first, end in tg.plan_windows(len(stream) - 1, cfg.eval_seq_len, cfg.eval_stride):
        ids = torch.from_numpy(stream[start : end + 1].astype(np.int64)).to(device)
        log_p = torch.log_softmax(
            model.logits(model.hidden(ids[None, :-1])[0])[0, first - start :].double(), dim=-1
        )
        nll[first:end] = -log_p.gather(1, ids[first - start + 1 :, None]).squeeze(1).cpu().numpy()
        -(log_p.exp() * log_p).sum(-1).cpu()  # the entropy that the n-gram gate asks for
    return nll


def compressed_bytes(model: tg.GPT, cfg: tg.Config) -> dict[str, int]:
    """Size of the quantised weights under each general compressor: int symbols and float byte planes, then row scales, in one block."""
    tensors = [tensors for _, tensors, _ in tg.pack(model, cfg, "")[1].values()]
    in_order = [t[0] for t in tensors] + [t[1] for t in tensors if t[1:]]
    data = b"".join(plane.tobytes() for t in in_order for plane in tg.byte_planes(t))
    raw_lzma = [
        {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "lp": 0, "pb": 0}
    ]  # lc 0: neighbours say little about weights
    return {
        "lzma": len(lzma.compress(data, format=lzma.FORMAT_RAW, filters=raw_lzma)),
        "zstd": len(
            zstandard.ZstdCompressor(
                level=22, write_content_size=False, write_checksum=False
            ).compress(data)
        ),
        "brotli": len(brotli.compress(data, quality=11, lgwin=24)),
    }


def flops_per_token(cfg: tg.Config) -> float:
    """Of one token in training; a multiply-add counts as 2. Forward: 2 per weight of every product that a token meets (embedding lookups are
    free), plus attention, 2 products of T/2 mean visible keys. Forward and backward: three times that (PaLM, Chowdhery et al. 2022, appendix B)."""
    D, hd = cfg.model_dim, cfg.model_dim // cfg.num_heads
    visits = cfg.num_layers + cfg.encoder_recurrence * cfg.num_encoder_layers
    block = D * hd * (2 * cfg.num_heads + 2 * cfg.num_kv_heads) + 2 * D * cfg.mlp_hidden
    weights = (
        visits * block + 2 * D * cfg.pre_enrich_hidden + cfg.bigram_dim * D + cfg.vocab_size * D
    )
    attention = visits * 2 * 2 * D * cfg.train_seq_len / 2
    return 3 * (2 * weights + attention)

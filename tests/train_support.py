"""What the tests of train_gpt.py share: tiny configs, and models none of whose paths is silent."""

import torch
from conftest import TINY

import train_gpt as tg


def tiny(**changes: object) -> tg.Config:
    """The tests' smallest config, with some settings changed."""
    return tg.validate(tg.Config().with_settings(**(TINY | changes)))


def awake(cfg: tg.Config, seed: int = 0, dtype: torch.dtype = torch.float64) -> tg.GPT:
    """A model with noise in every parameter: zero-initialised projections would hide a leak."""
    torch.manual_seed(seed)
    model = tg.GPT(cfg.model)
    with torch.no_grad():
        for name, p in model.named_parameters():
            size = 0.5 if p.ndim < 2 or name == "skips" else 0.2
            p.add_(torch.randn_like(p) * size)
    return model.to(dtype)

"""Leads CUDA to the CPU, so that a script written for GPUs runs whole without one.

Every Python interpreter of the run imports this package at its start, before the script. It then
waits: the modules below change `torch` when the script has imported it, one theme each. What a
script asks of a GPU is answered as an H100 would, and computed by the CPU in float32. No file of
the script is touched, and a run on a real GPU loads none of this.

Standard library only at import, so that interpreters that never use torch stay quick.
"""

from . import hooks

# Modules of this package that change a module of the environment when it has been imported.
AFTER_IMPORT = {
    "torch": (
        "devices",
        "precision",
        "driver",
        "graphs",
        "compiling",
        "attention",
        "ranks",
        "training",
        "kernels",
    ),
    "triton": ("interpreted",),
}

# Packages that need a GPU to be built or loaded -> the module of this package with their names.
STAND_INS = {
    "flash_attn": "flash",
    "flash_attn.cute": "flash",
    "flash_attn.cute.interface": "flash",
    "flash_attn.flash_attn_interface": "flash",
    "flash_attn_3": "flash",
    "flash_attn_3.flash_attn_interface": "flash",
    "flash_attn_interface": "flash",
    "hopper": "flash",
    "hopper.flash_attn_interface": "flash",
    "kernels": "hub",
    "torch._dynamo": "eager",
    "torch._inductor": "eager",
    "torch.nn.attention.flex_attention": "flex",
}
# Of these, every module below is stood in for as well.
WHOLE = ("torch._dynamo", "torch._inductor")

hooks.install(__name__, AFTER_IMPORT, STAND_INS, WHOLE)

"""Triton's own interpreter computes its kernels on the CPU."""

import triton


def lead() -> None:
    """Change triton."""
    triton.autotune = _autotune


class _FirstConfiguration:
    """A kernel with the first of the configurations to choose from: tuning measures on a GPU."""

    def __init__(self, kernel, configuration):
        self.kernel = kernel
        self.options = dict(configuration.kwargs)

    def __getitem__(self, grid):
        def start(*args, **kwargs):
            return self.kernel[grid](*args, **(self.options | kwargs))

        return start

    def run(self, *args, grid, warmup=False, **kwargs):
        """As other decorators around it call the kernel."""
        return self[grid](*args, **kwargs)

    def __getattr__(self, name):
        return getattr(self.kernel, name)


def _autotune(configs, *args, **kwargs):
    """Takes what this version of triton.autotune takes."""

    def decorate(kernel):
        return _FirstConfiguration(kernel, configs[0]) if configs else kernel

    return decorate

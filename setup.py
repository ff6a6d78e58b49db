"""Where the installed referee's files come from. pyproject.toml says everything else.

`eval` lies at the root here and in golf_referee/lib of the wheel; tools/golf_referee says why. That
move is the one thing that pyproject.toml cannot say without a list of all packages.
"""

from setuptools import find_packages, setup

LIBRARY = "golf_referee.lib"

setup(
    packages=["golf_referee"]
    + [f"{LIBRARY}.{name}" for name in find_packages(include=["eval", "eval.*"])],
    package_dir={"golf_referee": "tools/golf_referee", f"{LIBRARY}.eval": "eval"},
    # What no package imports: rule sets, templates, and the scripts that run inside the sandbox.
    package_data={"": ["rulesets/*", "assets/*", "inside/*"]},
)

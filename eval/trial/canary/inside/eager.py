"""torch._dynamo and torch._inductor, where nothing is compiled.

Scripts set their options, reset them and decorate with them. torch itself asks torch._dynamo to
leave functions alone. The real packages would take seconds to import, and trip over what this
package has changed."""

VERSION = ""


class Anything:
    """Takes every use: called, decorated with, entered, read from. It is false and empty."""

    def __call__(self, *args, **kwargs):
        return args[0] if args and callable(args[0]) else self

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __setattr__(self, name, value):
        self.__dict__[name] = value

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return False

    def __bool__(self):
        return False

    def __iter__(self):
        return iter(())

    def __getitem__(self, key):
        return self

    def __setitem__(self, key, value):
        pass


def module_attribute(name):
    """What a module of these packages answers for a name that nobody has set."""
    if name.startswith("__"):
        raise AttributeError(name)
    return Anything()


def is_compiling() -> bool:
    """Never."""
    return False


def is_dynamo_supported() -> bool:
    """Not here."""
    return False


def __getattr__(name):
    if name == "OptimizedModule":
        from .compiling import Compiled

        return Compiled
    return module_attribute(name)

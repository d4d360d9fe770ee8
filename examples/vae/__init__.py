"""A variational auto-encoder on small images, trained with Lightning from a YAML file."""


class InputError(Exception):
    """Something the user gave cannot be used: told in a line or two, without a traceback."""

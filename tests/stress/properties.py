"""All properties: importing this enters them."""

from tests.stress import closed_forms
from tests.stress.case import PROPERTIES

__all__ = ["PROPERTIES", "closed_forms"]

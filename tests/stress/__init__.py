"""Random closed forms at length, against oracles and against one another: ``make stress``.

A case is a property and a seed. ``python -m tests.stress --cases 100000 --processes 2 --state stress.json`` runs many
and prints a table; stopped and started again it goes on. ``python -m tests.stress --property NAME --seed 1234`` runs
one, and prints what was drawn and what went wrong.

- ``case.py``: a case, what it draws and what it asserts; the properties by name, and how often each is drawn.
- ``running.py``: many cases in several processes, with a state on disk; ``__main__.py`` is the command.
- ``drawing.py``: random shapes, parameters and distributions. ``differences.py``: gradients by differences.
- One file a kind of property, which ``properties.py`` imports: ``closed_forms.py``.

A new property is a function of a case with the decorator ``stress_property``, in one of these files.
"""

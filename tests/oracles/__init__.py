r"""The Kullback-Leibler divergence to fifty digits, for one unbatched pair of distributions: ``true_kl(p, q)``.

.. math:: D_{KL}(p\|q) = E_p[\ln p - \ln q] = -H(p) - \sum_i c_i(q)\, E_p[s_i(x)],
              \quad \ln q(x) = \sum_i c_i(q)\, s_i(x)

The logarithm of each density is written once, as a sum of statistics s. The entropy and the expectations of the
statistics are written once for each p. What cancels there costs digits, and mpmath has them: every value is computed
at two precisions, which rise until the two show that fifty digits are right. Where an expectation has no closed form
the integral is taken numerically, to about 30 digits.

The parameters are those that the object stores, converted exactly. Nothing but the class DiagonalNormal is shared with
the package. ``test_oracles.py`` checks all of it against integrals, sums and torch's densities.

To add a family on a line:

1. ``parameters.py``: the names of its parameters, in ``PARAMETERS``.
2. ``densities.py``: its log-density as a sum of statistics, in ``log_density_terms``, and its ``SUPPORT``.
3. ``expectations.py``: its entropy, and what it expects of the statistics. Leave out what has no closed form.
4. ``families.py``: how to draw two of it, in ``FAMILIES``; for two different families ``CROSS`` in ``two_families.py``.

The tests in ``tests/exact/`` go through ``FAMILIES`` and ``CROSS``, and so prove a new entry by themselves.

The other files: ``discrete.py`` has tables of probabilities and counts (for a new one: ``LOG_PMF`` and ``mean_count``),
``matrices.py`` Dirichlet, normal vectors and Wishart, ``continuous.py`` the divergence of two families on a line,
``integrals.py`` the same as an integral. ``divergences.py`` chooses among them (``SPECIAL``: pairs with a formula of
their own), ``gradients.py`` differentiates it. ``drawing.py`` and ``normal_vectors.py`` are what the random pairs are
made of; ``drawing.tolerance`` says how accurate a divergence must be.
"""

from tests.oracles.continuous import is_infinite
from tests.oracles.densities import canonical
from tests.oracles.discrete import LOG_PMF, kl_sum
from tests.oracles.divergences import closed_form, kl_of, relative_error, true_kl
from tests.oracles.drawing import tolerance
from tests.oracles.expectations import NoClosedFormError
from tests.oracles.families import FAMILIES
from tests.oracles.gradients import true_gradients, true_partial
from tests.oracles.integrals import integrated, log_density
from tests.oracles.parameters import stored
from tests.oracles.two_families import CROSS

__all__ = [
    "CROSS",
    "FAMILIES",
    "LOG_PMF",
    "NoClosedFormError",
    "canonical",
    "closed_form",
    "integrated",
    "is_infinite",
    "kl_of",
    "kl_sum",
    "log_density",
    "relative_error",
    "stored",
    "tolerance",
    "true_gradients",
    "true_kl",
    "true_partial",
]

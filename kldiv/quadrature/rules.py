"""The Gauss-Kronrod rule, the edges of the first panels, and what counts as zero."""

__all__ = [
    "END_EDGES",
    "EPS",
    "GAP_EDGES",
    "GAUSS",
    "KRONROD",
    "LOG_NOTHING",
    "NODES",
    "POWER_LAW_TOLERANCE",
    "SLOWEST_DECAY",
    "TAIL_EDGES",
]


EPS = 2.0**-52
"""The spacing of float64 numbers at 1."""

LOG_NOTHING = -90.0
"""Where the logarithm of the integrand is below this, nothing is left of it: e^-90 is 1e-39."""

SLOWEST_DECAY = 4e-3
"""An integrand that decays by less than this, in logarithm per unit of t, is taken not to decay: it diverges."""

POWER_LAW_TOLERANCE = 3e-4
"""How far the log-density near an end may be from a power law, relative to one of its steps, to be continued by it."""

# Edges of the first panels on a ray, in t = ln(distance / length). A unit of 8 is a factor of 3000 in distance.

GAP_EDGES = (-160.0, -80.0, -56.0, -40.0, -32.0, -24.0, -16.0, -8.0, 0.0)
"""From the break that the ray starts from to the middle of a gap, t = 0."""

END_EDGES = tuple(-10.0 * 2**k for k in range(13, 4, -1))
"""Before those where a break may be an end of a support: of a density d^(a - 1) the share e^(at) lies before t."""

TAIL_EDGES = (8.0, 16.0, 24.0, 32.0, 40.0, 48.0, 56.0, 64.0, 72.0, 80.0, 120.0, 160.0, 240.0, 345.0)
"""Outwards from the outermost break, to distances of 1e150, whose squares are still numbers."""


def _symmetric(*half: float, sign: float = 1.0) -> tuple[float, ...]:
    return (*(sign * x for x in half), *reversed(half[:-1]))


# the nodes of the rule of 15 points on [-1, 1], its weights, and those of the rule of 7 that it contains
NODES = _symmetric(
    0.991455371120812639206854697526329,
    0.949107912342758524526189684047851,
    0.864864423359769072789712788640926,
    0.741531185599394439863864773280788,
    0.586087235467691130294144691258380,
    0.405845151377397166906606412076961,
    0.207784955007898467600689403773245,
    0.0,
    sign=-1.0,
)
KRONROD = _symmetric(
    0.022935322010529224963732008058970,
    0.063092092629978553290700663189204,
    0.104790010322250183839876322541518,
    0.140653259715525918745189590510238,
    0.169004726639267902826583426598550,
    0.190350578064785409913256402421014,
    0.204432940075298892414161999234649,
    0.209482141084727828012999174891714,
)
GAUSS = _symmetric(
    0.0,
    0.129484966168869693270611432679082,
    0.0,
    0.279705391489276667901467771423780,
    0.0,
    0.381830050505118944950369775488975,
    0.0,
    0.417959183673469387755102040816327,
)

"""Vectors and matrices: Dirichlet, normal vectors with any covariance, and Wishart."""

from mpmath import mp, mpf

from tests.oracles.parameters import Parameters

Matrix = list[list[mpf]]


def kl_dirichlet(p: Parameters, q: Parameters) -> mpf:
    a, b = p["concentration"], q["concentration"]
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} categories")
    total, other = mp.fsum(a), mp.fsum(b)
    constants = (
        mp.loggamma(total)
        - mp.loggamma(other)
        + mp.fsum(mp.loggamma(v) - mp.loggamma(u) for u, v in zip(a, b, strict=True))
    )
    mean_log = mp.digamma(total)
    return constants + mp.fsum((u - v) * (mp.digamma(u) - mean_log) for u, v in zip(a, b, strict=True) if u != v)


def cholesky(matrix: Matrix) -> Matrix:
    """The lower triangular factor, row by row; entries above the diagonal are left out."""
    rows: Matrix = []
    for i, values in enumerate(matrix):
        row: list[mpf] = []
        for j in range(i):
            row.append((values[j] - mp.fdot(row, rows[j][:j])) / rows[j][j])
        square = values[i] - mp.fdot(row, row)
        if square <= 0:
            raise ValueError("the matrix is not positive definite")
        rows.append([*row, mp.sqrt(square)])
    return rows


def solved(lower: Matrix, vector: list[mpf]) -> list[mpf]:
    """x in L x = vector."""
    x: list[mpf] = []
    for row, value in zip(lower, vector, strict=True):
        x.append((value - mp.fdot(row[:-1], x)) / row[-1])
    return x


def columns(matrix: Matrix) -> Matrix:
    return [list(column) for column in zip(*matrix, strict=True)]


def full(lower: Matrix) -> Matrix:
    return [[*row, *[mpf(0)] * (len(lower) - len(row))] for row in lower]


def symmetric(matrix: Matrix) -> Matrix:
    return [[(u + v) / 2 for u, v in zip(*pair, strict=True)] for pair in zip(matrix, columns(matrix), strict=True)]


def scale_of(p: Parameters) -> Matrix:
    """The Cholesky factor of the covariance of whichever matrix is given."""
    if "scale_tril" in p:
        return [row[: i + 1] for i, row in enumerate(p["scale_tril"])]
    if "covariance_matrix" in p:
        return cholesky(symmetric(p["covariance_matrix"]))
    lower = cholesky(symmetric(p["precision_matrix"]))
    identity = [[mpf(i == j) for j in range(len(lower))] for i in range(len(lower))]
    root = [solved(lower, unit) for unit in identity]  # row i: L^-1 e_i, so that root root' = (L L')^-1
    return cholesky([[mp.fdot(u, v) for v in root] for u in root])


def is_multivariate_normal(family: str) -> bool:
    return family in ("MultivariateNormal", "LowRankMultivariateNormal", "Independent(Normal)", "DiagonalNormal")


def gaussian(family: str, p: Parameters) -> tuple[list[mpf], Matrix]:
    """Mean and Cholesky factor of the covariance."""
    if family == "MultivariateNormal":
        return p["loc"], scale_of(p)
    if family == "LowRankMultivariateNormal":
        factor = p["cov_factor"]
        covariance = [
            [mp.fdot(u, v) + (d if u is v else 0) for v in factor] for u, d in zip(factor, p["cov_diag"], strict=True)
        ]
        return p["loc"], cholesky(covariance)
    mean = p["loc"] if family == "Independent(Normal)" else p["mean"]
    if not isinstance(mean, list):
        mean, p = [mean], {name: [value] for name, value in p.items()}
    scale = p["scale"] if family == "Independent(Normal)" else [mp.exp(v / 2) for v in p["log_var"]]
    return mean, [[*[mpf(0)] * i, v] for i, v in enumerate(scale)]


def kl_multivariate_normal(p: tuple[list[mpf], Matrix], q: tuple[list[mpf], Matrix]) -> mpf:
    (mean_p, scale_p), (mean_q, scale_q) = p, q
    if len(mean_p) != len(mean_q):
        raise ValueError(f"{len(mean_p)} and {len(mean_q)} dimensions")
    distance = solved(scale_q, [u - v for u, v in zip(mean_p, mean_q, strict=True)])
    return (trace_and_log_det(scale_p, scale_q)[2] + mp.fdot(distance, distance)) / 2


def trace_and_log_det(scale_p: Matrix, scale_q: Matrix) -> tuple[mpf, mpf, mpf]:
    """t = tr(V_q^-1 V_p) - d and l = ln det(V_q^-1 V_p), and t - l."""
    d = len(scale_p)
    ratio = [solved(scale_q, column) for column in columns(full(scale_p))]
    trace = mp.fsum(mp.fdot(column, column) for column in ratio) - d
    log_det = 2 * mp.fsum(mp.log(scale_p[i][i] / scale_q[i][i]) for i in range(d))
    return trace, log_det, trace - log_det


def kl_wishart(p: Parameters, q: Parameters) -> mpf:
    n, m = p["df"], q["df"]
    scale_p, scale_q = scale_of(p), scale_of(q)
    d = len(scale_p)
    trace, log_det, _ = trace_and_log_det(scale_p, scale_q)
    halves = [mpf(i) / 2 for i in range(d)]
    constants = mp.fsum(mp.loggamma(m / 2 - h) - mp.loggamma(n / 2 - h) for h in halves)
    mean_log = mp.fsum(mp.digamma(n / 2 - h) for h in halves)
    return (n * trace - m * log_det) / 2 + constants + (n - m) / 2 * mean_log

"""What a run leaves when it ends: summary.json, figures and a page that holds both."""

import base64
import html
import json
import math
import os
from pathlib import Path
from typing import Any

from torch import Tensor

import kldiv
from examples.vae.evaluate import Evaluation, evaluate
from examples.vae.figures import draw_figures
from examples.vae.model import VAE

GREY_VALUES = (
    "The images are grey values under a Bernoulli likelihood, so reconstruction, negative_elbo and log_likelihood are "
    "cross-entropies: comparable between runs on the same data, and no log-likelihood of the images."
)

ROWS = {
    "negative_elbo": "negative ELBO, one sample (nats)",
    "reconstruction": "reconstruction (nats)",
    "kl": "KL (nats)",
    "log_likelihood": "log-likelihood by importance sampling (nats)",
    "log_likelihood_standard_error": "its standard error (nats)",
    "importance_samples": "importance samples an image",
    "active_units": "active units",
    "latent_dim": "latent dimensions",
    "test_examples": "test examples",
    "epochs": "epochs",
    "best_epoch": "epoch of the checkpoint evaluated",
    "seconds_per_epoch": "seconds a training epoch",
    "device": "device",
    "seed": "seed",
}


def write_report(
    model: VAE, images: Tensor, run: Path, importance_samples: int, facts: dict[str, Any]
) -> dict[str, Any]:
    """Evaluates on test images (N, C, H, W), writes everything into the run's folder, and gives the summary.

    ``facts`` are what the evaluation cannot know: epochs, seconds per epoch, device, seed.
    """
    result = evaluate(model, images, importance_samples=importance_samples)
    summary = _summary(result, model, images, importance_samples, facts)
    figures = draw_figures(model, images, result.kl_per_dimension, run / "metrics.csv", run / "figures")
    config = (run / "config.yaml").read_text()
    _write(run / "report.html", _page(run.name, summary, figures, config))
    # JSON has no infinity, which the standard error of one sample is
    finite = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in summary.items()}
    _write(run / "summary.json", json.dumps(finite, indent=2) + "\n")
    return summary


def table(summary: dict[str, Any]) -> str:
    """The summary in two columns."""
    width = max(len(label) for label in ROWS.values())
    lines = [f"{label:<{width}}  {_number(summary[name])}" for name, label in ROWS.items()]
    return "\n".join([*lines, *([summary["note"]] if summary["note"] else [])])


def _summary(
    result: Evaluation, model: VAE, images: Tensor, importance_samples: int, facts: dict[str, Any]
) -> dict[str, Any]:
    values = {name: value for name, value in vars(result).items() if not isinstance(value, Tensor)}
    grey = isinstance(model.elbo.reconstruction, kldiv.BernoulliNLL) and bool(((images > 0) & (images < 1)).any())
    return {
        **values,
        "kl_per_dimension": result.kl_per_dimension.tolist(),
        "importance_samples": importance_samples,
        "latent_dim": len(result.kl_per_dimension),
        "test_examples": len(images),
        **facts,
        "note": GREY_VALUES if grey else "",
    }


def _number(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.2g}"


def _page(name: str, summary: dict[str, Any], figures: dict[str, Path], config: str) -> str:
    rows = "\n".join(
        f"<tr><td>{html.escape(label)}</td><td class=number>{html.escape(_number(summary[key]))}</td></tr>"
        for key, label in ROWS.items()
    )
    pictures = "\n".join(
        f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,'
        f'{base64.b64encode(path.read_bytes()).decode()}"><figcaption>{html.escape(caption)}.</figcaption></figure>'
        for caption, path in figures.items()
    )
    note = f"<p>{html.escape(summary['note'])}</p>" if summary["note"] else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(name)}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; }}
body {{ max-width: 56rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; }}
td {{ border-bottom: 1px solid #ddd; padding: 0.25rem 1.5rem 0.25rem 0; }}
.number {{ text-align: right; font-variant-numeric: tabular-nums; padding-right: 0; }}
figure {{ margin: 2.5rem 0; }}
img {{ max-width: 100%; }}
figcaption {{ color: #555; }}
</style>
</head>
<body>
<h1>{html.escape(name)}</h1>
<p>On the test set, which training never saw, in nats per example. The checkpoint is the best one by validation.</p>
<table>
{rows}
</table>
{note}
{pictures}
<details>
<summary>Configuration</summary>
<pre>{html.escape(config)}</pre>
</details>
</body>
</html>
"""


def _write(path: Path, text: str) -> None:
    new = path.with_suffix(".tmp")
    new.write_text(text)
    os.replace(new, path)

"""The report of a study: one JSON of all figures; from it the table, what held of the paper's findings, pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pirl_plugin.analysis_figures import draw_invariance, draw_lines
from pirl_plugin.figures import new_figure, save
from pirl_plugin.study import Study

MEASURES = {
    "knn": "kNN (k = 200)",
    "linear": "linear",
    "labels_1percent": "1% of the labels",
    "labels_10percent": "10% of the labels",
}
LEVEL = "trunk, batch statistics"  # at which different models' distances are compared
Runs = Mapping[str, Sequence[Mapping[str, Any]]]


def collect(study: Study, output: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """All that a report is made of: settings, methods, sweeps and the result of each run that is done."""
    results = [json.loads(path.read_text()) for path in sorted(output.glob("runs/*/seed*/result.json"))]
    methods = {
        name: {"title": method.title, "paper": dict(method.paper or {})} for name, method in study.methods.items()
    }
    sweeps = {
        name: {
            "title": sweep.title,
            "label": sweep.label,
            "logarithmic": sweep.logarithmic,
            "series": {line: dict(values) for line, values in sweep.series.items()},
        }
        for name, sweep in study.sweeps.items()
    }
    return {"settings": dict(settings), "methods": methods, "sweeps": sweeps, "runs": results}


def by_name(content: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The results of each run, seed by seed."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for result in sorted(content["runs"], key=lambda one: (one["name"], one["seed"])):
        runs.setdefault(result["name"], []).append(result)
    return runs


def of(runs: Runs, name: str, measure: str) -> list[float]:
    """A figure of each seed of a run; none where it was not run."""
    return [float(result[measure]) for result in runs.get(name, [])]


def deviation(values: Sequence[float]) -> float:
    """Standard deviation over seeds; 0 for a single one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def table(content: Mapping[str, Any]) -> str:
    """The small Table 2, 3 and 5, in per cent, with the paper's figures of ImageNet beside."""
    runs = by_name(content)
    titles = " | ".join(MEASURES.values())
    lines = [
        f"| | seeds | {titles} | paper: linear, 1%, 10% |",
        "| --- | --- |" + " --- |" * (len(MEASURES) + 1),
    ]
    for name, method in content["methods"].items():
        if name not in runs:
            continue
        cells = []
        for measure in MEASURES:
            values = [100 * value for value in of(runs, name, measure)]
            spread = f" +- {deviation(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.1f}{spread}")
        paper = [method["paper"].get(measure) for measure in ("linear", "labels_1percent", "labels_10percent")]
        shown = ", ".join("-" if value is None else f"{value:g}" for value in paper)
        lines.append(f"| {method['title']} | {len(runs[name])} | {' | '.join(cells)} | {shown} |")
    return "\n".join(lines)


@dataclass(frozen=True)
class Finding:
    """One of the paper's findings, and whether it held.

    Attributes:
        verdict: `held`, `not held`, or `within the noise` where the difference is below twice its standard error.
        figures: the numbers, in words.
    """

    claim: str
    verdict: str
    figures: str


def noise(runs: Runs, measure: str) -> float:
    """The standard deviation between seeds, pooled over all runs that have several; NaN where none has."""
    several = [of(runs, name, measure) for name, results in runs.items() if len(results) > 1]
    return float(np.sqrt(np.mean([np.var(values, ddof=1) for values in several]))) if several else float("nan")


def compare(runs: Runs, claim: str, better: str, worse: str, equal: bool = False) -> list[Finding]:
    """Whether one run's linear and kNN accuracies are above another's; nothing where one of them is missing.

    Args:
        equal: whether the claim is >=, which holds within the noise, too.
    """
    findings = []
    for measure in ("linear", "knn"):
        first, second = of(runs, better, measure), of(runs, worse, measure)
        if not first or not second:
            continue
        difference = float(np.mean(first) - np.mean(second))
        error = noise(runs, measure) * np.sqrt(1 / len(first) + 1 / len(second))
        within = abs(difference) < 2 * error
        held = "held" if difference > 0 or (equal and within) else "not held"
        verdict = held if equal or not within else "within the noise"
        figures = (
            f"{MEASURES[measure]} {100 * np.mean(first):.1f} and {100 * np.mean(second):.1f}, "
            f"{100 * difference:+.1f} (standard error {100 * error:.1f})"
        )
        findings.append(Finding(claim, verdict, figures))
    return findings


def best_at(runs: Runs, claim: str, line: Mapping[str, str], wanted: str) -> list[Finding]:
    """Whether the best linear accuracy of a sweep is at the value `wanted`."""
    means = {value: float(np.mean(of(runs, name, "linear"))) for value, name in line.items() if name in runs}
    if len(means) < len(line):
        return []
    best = max(means, key=means.__getitem__)
    error = noise(runs, "linear") * np.sqrt(1 / len(runs[line[best]]) + 1 / len(runs[line[wanted]]))
    within = means[best] - means[wanted] < 2 * error
    verdict = "held" if best == wanted else "within the noise" if within else "not held"
    figures = ", ".join(f"{value}: {100 * mean:.1f}" for value, mean in means.items())
    return [Finding(claim, verdict, f"linear {figures} (standard error of a difference {100 * error:.1f})")]


def rising(runs: Runs, claim: str, line: Mapping[str, str]) -> list[Finding]:
    """Whether the linear accuracy rises along a sweep: the rank correlation, and the last against the first."""
    names = list(line.values())
    if any(name not in runs for name in names):
        return []
    means = [float(np.mean(of(runs, name, "linear"))) for name in names]
    ranks = np.argsort(np.argsort(means))
    correlation = float(np.corrcoef(np.arange(len(ranks)), ranks)[0, 1])
    error = noise(runs, "linear") * np.sqrt(1 / len(runs[names[0]]) + 1 / len(runs[names[-1]]))
    difference = means[-1] - means[0]
    verdict = "within the noise" if abs(difference) < 2 * error else "held" if difference > 0 else "not held"
    figures = ", ".join(f"{value}: {100 * mean:.1f}" for value, mean in zip(line, means, strict=True))
    return [Finding(claim, verdict, f"linear {figures}; rank correlation {correlation:+.1f}")]


def best_layer(runs: Runs, claim: str, name: str, wanted: str) -> list[Finding]:
    """Whether the layer `wanted` has the best linear accuracy."""
    layers = [result["layers"] for result in runs.get(name, []) if "layers" in result]
    if not layers:
        return []
    means = {layer: float(np.mean([one[layer] for one in layers])) for layer in layers[0]}
    best = max(means, key=means.__getitem__)
    figures = ", ".join(f"{layer} {100 * mean:.1f}" for layer, mean in means.items())
    return [Finding(claim, "held" if best == wanted else "not held", figures)]


def nearer(runs: Runs, claim: str, name: str, other: str) -> list[Finding]:
    """Whether the distances of images to their transformations are smaller and vary less than another model's."""
    findings = []
    for key, said in (("relative", "mean, relative to other images'"), ("mean", "mean"), ("variance", "variance")):
        pair = [[one["invariance"][LEVEL][key] for one in runs.get(n, [])] for n in (name, other)]
        if not all(pair):
            continue
        first, second = map(float, map(np.mean, pair))
        verdict = "held" if first < second else "not held"
        findings.append(Finding(f"{claim}: {said}", verdict, f"{first:.3f} and {second:.3f}"))
    return findings


def findings(content: Mapping[str, Any]) -> list[Finding]:
    """The paper's findings, one by one, as far as the runs for them were done."""
    runs, sweeps = by_name(content), content["sweeps"]

    def line(sweep: str, series: str) -> dict[str, str]:
        return sweeps.get(sweep, {}).get("series", {}).get(series, {"": "not run"})

    return [
        *compare(runs, "PIRL (jigsaw) > NPID++", "pirl_jigsaw", "npid_plus_plus"),
        *compare(runs, "PIRL (jigsaw) > Jigsaw", "pirl_jigsaw", "jigsaw"),
        *compare(runs, "PIRL (rotation) > Rotation", "pirl_rotation", "rotation"),
        *compare(runs, "NPID++ > Jigsaw", "npid_plus_plus", "jigsaw"),
        *compare(runs, "NPID++ > Rotation", "npid_plus_plus", "rotation"),
        *compare(runs, "Jigsaw > random", "jigsaw", "random"),
        *compare(runs, "Rotation > random", "rotation", "random"),
        *compare(runs, "supervised > PIRL (jigsaw)", "supervised", "pirl_jigsaw"),
        *compare(runs, "PIRL (rotation + jigsaw) >= PIRL (jigsaw)", "pirl_rotation_jigsaw", "pirl_jigsaw", equal=True),
        *best_at(runs, "lambda = 0.5 is best (Figure 6)", line("lambda", "PIRL"), "0.5"),
        *rising(runs, "more permutations are better for PIRL (Figure 7)", line("permutations", "PIRL")),
        *rising(runs, "more permutations are better for Jigsaw (Figure 7)", line("permutations", "Jigsaw")),
        *rising(runs, "more negatives are better (Figure 8)", line("negatives", "PIRL")),
        *nearer(runs, "PIRL's distances are smaller and narrower than Jigsaw's (Figure 4)", "pirl_jigsaw", "jigsaw"),
        *best_layer(runs, "res5 is PIRL's best layer (Figure 5)", "pirl_jigsaw", "res5"),
        *best_layer(runs, "res4 is Jigsaw's best layer (Figure 5)", "jigsaw", "res4"),
    ]


def draw(content: Mapping[str, Any], folder: Path) -> list[Path]:
    """figure4.png to figure8.png, as far as there are runs for them, and study.png with all of them."""
    runs, titles = by_name(content), {name: method["title"] for name, method in content["methods"].items()}
    painters = {}
    shown = [n for n in ("pirl_jigsaw", "npid_plus_plus", "jigsaw", "rotation", "supervised") if n in runs]
    if shown:
        levels = {titles[name]: [one["invariance"][LEVEL] for one in runs[name]] for name in shown}
        histograms = {name: np.sum([one["histogram"] for one in some], axis=0) for name, some in levels.items()}
        means = {name: float(np.mean([one["mean"] for one in some])) for name, some in levels.items()}
        edges = np.linspace(0, 2, 1 + len(next(iter(histograms.values()))))
        painters["figure4"] = lambda axes: draw_invariance(axes, histograms, edges, means)
    layered = {titles[name]: _layers(results) for name, results in runs.items() if name in titles}
    layered = {name: layers for name, layers in layered.items() if layers}
    if layered:
        painters["figure5"] = lambda axes: draw_lines(axes, layered, "Figure 5: quality by layer", "layer")
    for sweep in content["sweeps"].values():
        series = {
            name: {value: of(runs, run, "linear") for value, run in line.items() if run in runs}
            for name, line in sweep["series"].items()
        }
        if all(len(values) > 1 for values in series.values()):
            number = sweep["title"].split(",")[0].removeprefix("Figure ")
            painters[f"figure{number}"] = lambda axes, sweep=sweep, series=series: draw_lines(
                axes, series, sweep["title"].replace(",", ":", 1), sweep["label"], sweep["logarithmic"]
            )
    drawn = []
    for name, paint in painters.items():
        figure = new_figure(5.2, 3.4)
        paint(figure.subplots())
        drawn.append(save(figure, folder / f"{name}.png"))
    if len(painters) > 1:
        rows = -(-len(painters) // 3)
        figure = new_figure(13.5, 3.5 * rows)
        axes = figure.subplots(rows, 3, squeeze=False).flat
        for one, paint in zip(axes, painters.values(), strict=False):
            paint(one)
        for one in list(axes)[len(painters) :]:
            one.set_axis_off()
        drawn.append(save(figure, folder / "study.png"))
    return drawn


def _layers(results: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    layers = [result["layers"] for result in results if "layers" in result]
    return {layer: [one[layer] for one in layers] for layer in layers[0]} if layers else {}


def report(content: Mapping[str, Any], pictures: Sequence[Path]) -> str:
    """The whole report as Markdown."""
    settings = content["settings"]
    runs = content["runs"]
    minutes = sum(one["minutes"] for one in runs)
    rows = "\n".join(f"| {one.claim} | {one.verdict} | {one.figures} |" for one in findings(content))
    images = "\n".join(f"![{path.stem}]({path.name})" for path in pictures if path.stem == "study") or "\n".join(
        f"![{path.stem}]({path.name})" for path in pictures
    )
    listed = "\n".join(f"- {key}: {value}" for key, value in settings.items())
    return f"""# PIRL's findings at a small size

{len(runs)} runs, {minutes:.0f} minutes of pre-training in all. Made by `python extra_scripts/study.py`; tables and
pictures again from study.json: `python extra_scripts/study.py --output <this folder> --report-only`.

{listed}

## Accuracies

Per cent of the test images, mean +- standard deviation over seeds, on res5's averaged features of a frozen network.
1% and 10%: logistic regression on that share of the labels, mean of five draws (the paper fine-tunes, and gives top-5).
The last column is the paper's, of ResNet-50 on ImageNet: another scale, given for the order.

{table(content)}

## The paper's findings

Held, not held, or within the noise: a difference below twice its standard error, which is taken from the seeds.

| finding | here | figures |
| --- | --- | --- |
{rows}

## Figures

{images}

Figure 4 compares the trunk's features of an image and the mean of those of its nine shuffled patches, with BatchNorm's
statistics of each kind of view, on test images; study.json also has PIRL's heads, and running statistics.
"""


def write(content: Mapping[str, Any], output: Path) -> Path:
    """study.json, the pictures and report.md in `output`; returns the report's path."""
    (output / "study.json").write_text(json.dumps(content, indent=1) + "\n")
    path = output / "report.md"
    path.write_text(report(content, draw(content, output)))
    return path

"""The report of a study: a JSON of all figures and, made from it, the table, the paper's findings, and plots."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pirl_plugin.evaluation.figures import draw_invariance, draw_lines
from pirl_plugin.experiments.study import Study
from pirl_plugin.experiments.study_findings import LAYERED, LEVEL, by_layer, by_name, findings, of_seeds
from pirl_plugin.figures import new_figure, save
from pirl_plugin.paths import write_json

MEASURES = {
    "knn": "kNN (k = 200)",
    "linear": "linear",
    "labels_1percent": "1% of the labels",
    "labels_10percent": "10% of the labels",
}
FURTHER = {
    "knn_recomputed": "kNN, averages recomputed",
    "linear_recomputed": "linear, averages recomputed",
    "finetuned_1percent": "1%, fine-tuned",
    "finetuned_10percent": "10%, fine-tuned",
}


def collect(
    study: Study,
    output: Path,
    settings: Mapping[str, Any],
    failed: Sequence[str] = (),
    rates: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The data of a report: settings, methods, sweeps, the results of finished runs, failures, and chosen rates."""
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
    # A study may go from one machine to another.
    machines = dict.fromkeys(one["machine"] for one in results if "machine" in one)
    settings = {**settings, **({"machine": "; ".join(machines)} if machines else {})}
    told = {"settings": settings, "rates": dict(rates or {}), "methods": methods, "sweeps": sweeps}
    return {**told, "runs": results, "failed": list(failed)}


def deviation(values: Sequence[float]) -> float:
    """Standard deviation over seeds; 0 for a single seed."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def cell(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds, in per cent; a dash without values."""
    if not values:
        return "-"
    spread = f" +- {deviation([100 * value for value in values]):.1f}" if len(values) > 1 else ""
    return f"{100 * np.mean(values):.1f}{spread}"


def table(content: Mapping[str, Any]) -> str:
    """The small Tables 2, 3 and 5, in per cent, next to the paper's figures on ImageNet."""
    runs = by_name(content)
    titles = " | ".join(MEASURES.values())
    lines = [
        f"| | seeds | {titles} | paper: linear, 1%, 10% |",
        "| --- | --- |" + " --- |" * (len(MEASURES) + 1),
    ]
    for name, method in content["methods"].items():
        if name not in runs:
            continue
        cells = [cell(of_seeds(runs, name, measure)) for measure in MEASURES]
        paper = [method["paper"].get(measure) for measure in ("linear", "labels_1percent", "labels_10percent")]
        shown = ", ".join("-" if value is None else f"{value:g}" for value in paper)
        lines.append(f"| {method['title']} | {len(runs[name])} | {' | '.join(cells)} | {shown} |")
    return "\n".join(lines)


def further_table(content: Mapping[str, Any]) -> str:
    """The methods fine-tuned, and with BatchNorm's averages recomputed; empty for studies that have neither."""
    runs = by_name(content)
    measured = {name: [one for one in results if set(FURTHER) <= set(one)] for name, results in runs.items()}
    named = {name: method["title"] for name, method in content["methods"].items() if measured.get(name)}
    if not named:
        return ""
    rows = [f"| {title} | {' | '.join(cell(of_seeds(measured, name, measure)) for measure in FURTHER)} |"
            for name, title in named.items()]  # fmt: skip
    return "\n".join([f"| | {' | '.join(FURTHER.values())} |", "| --- |" + " --- |" * len(FURTHER), *rows])


def sweep_tables(content: Mapping[str, Any]) -> str:
    """A table for each sweep: kNN / linear accuracy by series and value."""
    runs, tables = by_name(content), []
    for sweep in content["sweeps"].values():
        values = list(dict.fromkeys(value for line in sweep["series"].values() for value in line))
        lines = [f"| {sweep['title']}: kNN / linear | {' | '.join(values)} |", "| --- |" + " --- |" * len(values)]
        for name, line in sweep["series"].items():
            pairs = [[cell(of_seeds(runs, line.get(value, ""), measure)) for measure in ("knn", "linear")]
                     for value in values]  # fmt: skip
            lines.append(f"| {name} | {' | '.join(' / '.join(pair) for pair in pairs)} |")
        done = {run for line in sweep["series"].values() for run in line.values()} & set(runs)
        if len(done) > 1:  # one run is no sweep
            tables.append("\n".join(lines))
    return "\n\n".join(tables)


def draw(content: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw figure4.png to figure8.png, as far as there are runs for them, and study.png with all of them."""
    runs, titles = by_name(content), {name: method["title"] for name, method in content["methods"].items()}
    painters = {}
    shown = [n for n in ("pirl_jigsaw", "npid_plus_plus", "jigsaw", "rotation", "supervised") if n in runs]
    if shown:
        levels = {titles[name]: [one["invariance"][LEVEL] for one in runs[name]] for name in shown}
        histograms = {name: np.sum([one["histogram"] for one in seeds], axis=0) for name, seeds in levels.items()}
        means = {name: float(np.mean([one["mean"] for one in seeds])) for name, seeds in levels.items()}
        edges = np.linspace(0, 2, 1 + len(next(iter(histograms.values()))))
        level = LEVEL.split(",")[0]
        painters["figure4"] = lambda axes: draw_invariance(axes, histograms, edges, means, level)
    for measure, title in LAYERED.items():
        layered = {titles[name]: by_layer(runs[name], measure) for name in titles if name in runs}
        if layered := {name: layers for name, layers in layered.items() if layers}:
            painters[measure.replace("layers", "figure5")] = functools.partial(
                draw_lines, series=layered, title=f"Figure 5: quality by layer{title}", label="layer"
            )
    for key, sweep in content["sweeps"].items():
        series = {
            name: {value: of_seeds(runs, run, "linear") for value, run in line.items() if run in runs}
            for name, line in sweep["series"].items()
        }
        if all(len(values) > 1 for values in series.values()):
            name = "figure" + sweep["title"].split(",")[0].removeprefix("Figure ")
            title = sweep["title"].replace(",", ":", 1)
            painters[name if name not in painters else f"{name}_{key}"] = functools.partial(
                draw_lines, series=series, title=title, label=sweep["label"], logarithmic=sweep["logarithmic"]
            )
    drawn = []
    for name, paint in painters.items():
        figure = new_figure(5.2, 3.4)
        paint(figure.subplots())
        drawn.append(save(figure, folder / f"{name}.png"))
    if len(painters) > 1:
        rows = -(-len(painters) // 3)
        figure = new_figure(13.5, 3.5 * rows)
        axes = list(figure.subplots(rows, 3, squeeze=False).flat)
        for one, paint in zip(axes, painters.values(), strict=False):
            paint(one)
        for one in axes[len(painters) :]:
            one.set_axis_off()
        drawn.append(save(figure, folder / "study.png"))
    return drawn


def report(content: Mapping[str, Any], pictures: Sequence[Path]) -> str:
    """The full report as Markdown."""
    settings = content["settings"]
    runs = content["runs"]
    minutes = sum(one["minutes"] for one in runs)
    found = findings(content)
    rows = "\n".join(f"| {one.claim} | {one.verdict} | {one.evidence} |" for one in found)
    if not found:
        rows = "| none: findings need runs with the names in configs/study/small_images.yaml | | |"
    failed = "".join(f"- failed: {one}\n" for one in content.get("failed", []))
    images = "\n".join(f"![{path.stem}]({path.name})" for path in pictures if path.stem == "study") or "\n".join(
        f"![{path.stem}]({path.name})" for path in pictures
    )
    listed = "\n".join(f"- {key}: {value}" for key, value in settings.items())
    further, swept = further_table(content), sweep_tables(content)
    further = further and (
        "\nThe same with BatchNorm's averages recomputed on the training images alone (in training they blend images\n"
        f"and patches), and fine-tuned on one draw of the labels per seed, as in the paper (Table 3).\n\n{further}\n"
    )
    swept = swept and f"Points of the sweeps, per cent.\n\n{swept}\n"
    return f"""# PIRL's findings at a small size

{len(runs)} runs, {minutes:.0f} minutes of pre-training in all. Made by `pirl study`; to make tables
and plots again from study.json: `pirl study --output <this folder> --report-only`.

{listed}
{failed}
## Accuracies

Per cent of the test images, mean +- standard deviation over seeds, on res5's averaged features of a frozen network.
1% and 10%: logistic regression on that share of the labels, mean of five draws (the paper fine-tunes, and gives top-5).
The last column is the paper's, for a ResNet-50 on ImageNet: another scale, given to compare the order.

{table(content)}
{further}
{swept}
## The paper's findings

Held, not held, or within the noise, as a t test at 5% says. The standard error is that of means over seeds: of the two
methods that are compared or, in sweeps, whose points may have only one seed, pooled over all runs with several. Where a
value is compared with the best of several others, which may be best by chance, the test allows for their number.

| finding | here | figures |
| --- | --- | --- |
{rows}

## Figures

{images}

Figure 4 compares the trunk's features of an image with the mean of its features of the nine shuffled patches, with
separate BatchNorm statistics for each kind of view, on test images; study.json also has PIRL's heads, and running
statistics.
"""


def write(content: Mapping[str, Any], output: Path) -> Path:
    """Write study.json, the plots and report.md to `output`; returns the report's path."""
    write_json(output / "study.json", content)
    path = output / "report.md"
    path.write_text(report(content, draw(content, output)))
    return path

"""Results of a study, made up."""

from pirl_plugin.experiments.study_findings import (
    by_name,
)


def result(name: str, seed: int, linear: float, relative: float = 0.5, **more) -> dict:
    distances = {"mean": 0.4, "variance": 0.01, "relative": relative, "mean_between_images": 0.8, "histogram": [1, 2]}
    return {
        "name": name, "seed": seed, "title": name, "minutes": 1.0, "knn": linear - 0.02, "linear": linear,
        "labels_1percent": linear / 2, "labels_10percent": linear / 1.5,
        "invariance": {"trunk, batch statistics": distances}, **more,
    }  # fmt: skip


def runs_with(**accuracies: list[float]) -> dict:
    return by_name({"runs": [result(name, seed, v) for name, vs in accuracies.items() for seed, v in enumerate(vs)]})

"""Which column of a table has the images, and which the classes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from pirl_plugin.data.file_lists import printable
from pirl_plugin.validation import ConfigError, MissingPackageError


def import_pyarrow(path: str) -> ModuleType:
    """pyarrow, with its module `parquet`, for the table at a path.

    Raises:
        MissingPackageError: where it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingPackageError(
            f"{printable(path)} is a table of images, which pyarrow reads and which cannot be imported ({error}): "
            f"pip install pyarrow"
        ) from error
    return pyarrow


@dataclass(frozen=True)
class Columns:
    """The columns of a table that count here.

    Attributes:
        image: the one with images.
        in_struct: each of them is {bytes, path}, else bytes.
        with_path: there is a path beside the bytes.
        classes: those of type ClassLabel, with the names of their classes.
        others: the names of all other columns.
    """

    image: str
    in_struct: bool
    with_path: bool
    classes: dict[str, tuple[str, ...]]
    others: tuple[str, ...] = field(compare=False)

    def leaves(self, *of_image: str) -> list[str]:
        """What of the images Parquet is to read."""
        return [f"{self.image}.{name}" for name in of_image] if self.in_struct else [self.image]

    @property
    def label(self) -> str | None:
        """The column of classes; None unless there is just one."""
        return next(iter(self.classes)) if len(self.classes) == 1 else None


def columns_of(path: str, schema: Any, features: Mapping[str, Any]) -> Columns:
    """The columns of a file.

    Args:
        schema: pyarrow's.
        features: column -> what `datasets` says of it; {}: as the file itself says, or by the types of its columns.

    Raises:
        ConfigError: where there is no column of images, or several.
    """
    features = features or _features_in(schema)
    fields = {column.name: column for column in schema}
    images = [name for name in fields if _type(features, name) == "Image"]
    images = images or [name for name, column in fields.items() if _part(column, "bytes") is not None]
    images = images or [name for name, column in fields.items() if _is_binary(column)]
    if len(images) != 1:
        what = f"several columns of images, {_listed(images)}" if images else "no column of images"
        remedy = "keep one (remove_columns)" if images else "cast one to Image, or save the files themselves"
        raise ConfigError(f"{printable(path)} has {what}; its columns are {_listed(fields)}: {remedy}.")
    (image,) = images
    part = _part(fields[image], "bytes")
    if not _is_binary(fields[image] if part is None else part):
        raise ConfigError(
            f"The column {image} of {printable(path)} is {fields[image].type}; images must be bytes of image files, "
            f"or bytes and path of such."
        )
    classes = {
        name: tuple(map(str, features[name].get("names") or ()))
        for name, column in fields.items()
        if _type(features, name) == "ClassLabel" and str(column.type).startswith(("int", "uint"))
    }
    others = tuple(name for name in fields if name != image and name not in classes)
    beside = _part(fields[image], "path")
    with_path = beside is not None and str(beside.type) in ("string", "large_string")
    return Columns(image, part is not None, with_path, classes, others)


def refuse_labels(path: str, columns: Columns) -> None:
    """Say why a table has no classes.

    Raises:
        ConfigError: always.
    """
    if columns.label is not None:
        raise ConfigError(
            f"Rows of {printable(path)} have no class in the column {columns.label} (null, or a number below 0): "
            f"labels need one for each image."
        )
    if columns.classes:
        raise ConfigError(
            f"{printable(path)} has several columns of classes, {_listed(columns.classes)}: labels need one; remove "
            f"the others (remove_columns)."
        )
    raise ConfigError(
        f"{printable(path)} has no column of classes beside {columns.image}"
        + (f" (but {_listed(columns.others)})" if columns.others else "")
        + ": labels need one of type ClassLabel (class_encode_column)."
    )


def _features_in(schema: Any) -> dict[str, Any]:
    try:
        return dict(json.loads(schema.metadata[b"huggingface"])["info"]["features"])
    except (TypeError, KeyError, ValueError):  # not of `datasets`
        return {}


def _type(features: Mapping[str, Any], name: str) -> str:
    feature = features.get(name)
    return str(feature.get("_type", "")) if isinstance(feature, Mapping) else ""


def _is_binary(column: Any) -> bool:
    return str(column.type) in ("binary", "large_binary")


def _part(column: Any, name: str) -> Any:
    """The field of a name in a column of structs; None where there is none."""
    if not str(column.type).startswith("struct<") or column.type.get_field_index(name) < 0:
        return None
    return column.type.field(column.type.get_field_index(name))


def _listed(names: Any) -> str:
    return printable(" and ".join(filter(None, [", ".join(list(names)[:-1]), *list(names)[-1:]]))) or "none"

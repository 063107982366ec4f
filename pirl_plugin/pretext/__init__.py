"""Pretext tasks: sets T of image transformations t, and how an image becomes the views I and I^t (Section 2.3).

Importing the package imports every module in this folder: a new task is one file with `register_pretext`.
"""

import importlib
import pkgutil

from pirl_plugin.pretext.base import PretextTransform, SingleViewTransform, draw_number, register_pretext

__all__ = ["PretextTransform", "SingleViewTransform", "draw_number", "register_pretext"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

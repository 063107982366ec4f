"""Pretext tasks: sets T of image transformations t, and how an image becomes the views I and I^t (Section 2.3).

Every module of this folder is imported with it: a new task is one file with the decorator `register_pretext`.
"""

import importlib
import pkgutil

from pirl_plugin.pretext.base import PretextTransform, SingleViewTransform, draw_number, register_pretext

__all__ = ["PretextTransform", "SingleViewTransform", "draw_number", "register_pretext"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

"""The base of the plugin's hooks."""

from __future__ import annotations

from classy_vision.hooks import ClassyHook


class Hook(ClassyHook):
    """A hook whose methods do nothing unless a subclass overrides them."""

    on_start = ClassyHook._noop
    on_phase_start = ClassyHook._noop
    on_forward = ClassyHook._noop
    on_loss_and_meter = ClassyHook._noop
    on_backward = ClassyHook._noop
    on_update = ClassyHook._noop
    on_step = ClassyHook._noop
    on_phase_end = ClassyHook._noop
    on_end = ClassyHook._noop
    on_exception = ClassyHook._noop

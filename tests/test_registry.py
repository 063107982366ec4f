import pytest

from pirl_plugin.registry import Registry
from pirl_plugin.validation import ConfigError


def test_parts_are_found_by_name_in_their_order_and_others_are_refused_with_those_there_are():
    shapes = Registry("shape")
    assert shapes.register("round", int) is int
    shapes.register("square", str)
    assert list(shapes) == ["round", "square"] and shapes["square"] is str and len(shapes) == 2
    assert shapes.find("round", "shape.name") is int
    with pytest.raises(
        ConfigError, match=r"shape.name is 'rund' \(did you mean round\?\); it must be one of round, square"
    ):
        shapes.find("rund", "shape.name")


def test_a_name_is_taken_once_but_the_same_part_may_come_again():
    shapes = Registry("shape")
    shapes.register("round", int)
    shapes.register("round", int)
    with pytest.raises(ConfigError, match="already a shape named 'round'"):
        shapes.register("round", str)
    # A script that a spawned process imports again, under multiprocessing's name for it.
    first, again = (type("Own", (), {"__module__": module}) for module in ("__main__", "__mp_main__"))
    shapes.register("own", first)
    assert shapes.register("own", again) is again and shapes["own"] is again


def test_a_follower_sees_what_was_there_and_what_comes():
    shapes, seen = Registry("shape"), []
    shapes.register("round", int)
    shapes.follow(lambda name, part: seen.append((name, part)))
    shapes.register("square", str)
    assert seen == [("round", int), ("square", str)]

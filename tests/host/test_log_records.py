"""Long records go to a file, and whatever VISSL logs still reaches the log."""

import logging

from pirl_plugin.host.log_records import LONGEST, shorten


def test_long_records_are_shortened_warnings_are_not_and_a_broken_format_raises_nothing(tmp_path, capsys):
    logger = logging.Logger("x")
    logger.addHandler(logging.StreamHandler())
    logger.handlers[0].setStream(__import__("sys").stdout)
    shorten(logger, tmp_path, rank=0)
    long = "Model is:\n" + "\n".join(f"line {n}" for n in range(LONGEST))
    logger.info(long)
    logger.warning(long)
    logger.info("short")
    logger.error("Wrapping up, caught exception: ", RuntimeError("x"))  # as VISSL's launcher does
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"Model is: ... ({LONGEST + 1} lines in {tmp_path}/details.txt)"
    assert "\n".join(printed[1 : LONGEST + 2]) == long and printed[LONGEST + 2] == "short"
    assert (tmp_path / "details.txt").read_text() == long + "\n\n"

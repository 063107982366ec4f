"""Many runs at once: the demo, the benchmarks of one checkpoint, the study."""

import pirl_plugin.host  # noqa: F401  (mends VISSL before anything here imports it)

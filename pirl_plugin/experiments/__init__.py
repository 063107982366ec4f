"""Many runs at once: the demo, the benchmarks of one checkpoint, the study."""

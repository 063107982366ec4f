"""`pirl COMMAND`: one module a command, named for it, with `add_arguments(parser)` and `run(options)`.

Importing such a module must be quick, for `--help` and for shell completion: what it needs is imported in `run`.
"""

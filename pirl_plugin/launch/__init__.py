"""Starting things: VISSL's launcher with the plugin registered, checks of a config, the command line."""

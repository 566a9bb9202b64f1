"""From an archive of files to an index, and from an index to raw network outputs. Knows no outcome."""

"""One short file per verb: read tables, call the wings, write tables. No science."""

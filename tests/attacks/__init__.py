"""Hostile PCLL files: `build` makes containers by hand, `forge` has a generator per attack, `fuzz`
mutates files."""

"""The command line's functions: each takes what was typed, calls the library and prints what it says."""

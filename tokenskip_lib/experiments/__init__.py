"""Runs: stages, studies, notebooks and plans."""

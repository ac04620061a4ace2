"""Records, settings, profiles and files: what passes between stages."""

"""Questions, and when an answer is right."""

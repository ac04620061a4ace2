"""Split an output into chain and answer, extract the answer, check it (math-verify), count tokens.

Strict: an answer counts only where the output states one (boxed, or after an answer phrase), and
only if math-verify finds it equal to the gold answer. No fallback to the last number.
"""

"""Can the target model write out again what pruning took away? Pruned chains in, recovered chains out.

If it can, the skipped tokens carried little that the kept ones do not imply.

Source: TokenSkip (arXiv:2502.12067), figure 3.
"""

import re
from collections import Counter
from collections.abc import Sequence

import pandas as pd

from tokenskip_lib.answering import build_engine
from tokenskip_lib.generation import Request
from tokenskip_lib.grading import split_output
from tokenskip_lib.models import load_tokenizer
from tokenskip_lib.prompts import build_recovery_prompt
from tokenskip_lib.records import Chain, Problem, PrunedChain
from tokenskip_lib.runs import CHAINS, PRUNED, TRAIN_PROBLEMS, Run

RECOVERY_COLUMNS = ["id", "ratio", "pruned", "recovered", "numbers_pruned", "numbers_recovered"]
RECOVERY_COLUMNS += ["equations_pruned", "equations_recovered"]
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_EQUATION = re.compile(r"[\d(][\d., +\-*/×÷()$€£¥%]*[+\-*/×÷][\d., +\-*/×÷()$€£¥%]*= *[$€£¥]?\d+(?:[.,]\d+)*")


def recover(run: Run, ratios: Sequence[float], size: int) -> pd.DataFrame:
    """The target model recovers the run's first pruned chains at each ratio, greedily; nothing is written.

    Returns:
        A row a chain and ratio, in RECOVERY_COLUMNS: shares of the original's numbers and equations
        that are found, exactly, in the pruned and in the recovered text; missing where it has none.
    """
    profile, tokenizer = run.profile, load_tokenizer(run.profile.target)
    store = {chain.key[0::2]: chain for chain in run.need(PRUNED, PrunedChain, "prune")}
    questions = {problem.id: problem.question for problem in run.need(TRAIN_PROBLEMS, Problem, "generate")}
    ids = list(dict.fromkeys(chain.id for chain in run.in_problem_order(store.values())))[:size]
    originals = {chain.id: chain.chain for chain in run.need(CHAINS, Chain, "generate")}
    requests = [
        Request(
            id=(name, ratio),
            prompt=build_recovery_prompt(tokenizer, questions[name], store[name, ratio].text, profile.prompts),
            max_new_tokens=profile.chains.max_new_tokens,
        )
        for name in ids
        for ratio in ratios
    ]
    engine = build_engine(profile, tokenizer, profile.chains.batch_size)
    answers = {answer.id: answer.text for batch in engine.generate(requests, label="recovery") for answer in batch}
    rows = []
    for name, ratio in (request.id for request in requests):
        pruned, recovered, original = store[name, ratio].text, answers[name, ratio], originals[name]
        recovered = split_output(recovered, profile.prompts.layout).chain  # what it answers is no part of the chain
        shares = [found(items(original), items(text)) for items in (numbers, equations) for text in (pruned, recovered)]
        rows.append([name, ratio, pruned, recovered, *shares])
    return pd.DataFrame(rows, columns=RECOVERY_COLUMNS)


def numbers(text: str) -> list[str]:
    """The numbers of a text, thousands without their commas."""
    return [re.sub(r",(?=\d{3})", "", match) for match in _NUMBER.findall(text)]


def equations(text: str) -> list[str]:
    """The arithmetic equations of a text, without spaces, currency signs and the commas of thousands."""
    return [re.sub(r"[ $€£¥]|,(?=\d{3})", "", match) for match in _EQUATION.findall(text)]


def found(wanted: Sequence[str], given: Sequence[str]) -> float | None:
    """The share of `wanted` that is among `given`, each as often as it is there; None where nothing is wanted."""
    if not wanted:
        return None
    return sum((Counter(wanted) & Counter(given)).values()) / len(wanted)

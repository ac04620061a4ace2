"""Mixed-ratio training rows: one drawn ratio for each problem, or all ratios; their token ids and their order.

Source: TokenSkip (arXiv:2502.12067) section 3.3.
"""

import random
from collections.abc import Iterable, Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from tokenskip_lib.core.records import Chain, ChainText, InputError, OutputChain, Problem, PrunedChain, SFTRow
from tokenskip_lib.core.settings import PromptSettings, TrainingSettings
from tokenskip_lib.models.packing import EncodedRow
from tokenskip_lib.models.prompts import answer_tail, build_completion, build_prompt, encode_completion, encode_prompt


def draw_ratios(ids: Sequence[str], ratios: Sequence[float], seed: int) -> dict[str, float]:
    """One ratio for each problem, uniform over `ratios`, the same for the same ids and seed.

    Example:
        >>> draw_ratios(["a", "b", "c"], [0.5, 0.7, 1.0], seed=0)
        {'a': 0.7, 'b': 0.7, 'c': 0.5}
    """
    generator = random.Random(seed)
    return {problem_id: generator.choice(list(ratios)) for problem_id in ids}


def choose_chains(
    pruned: Sequence[PrunedChain],
    ids: Sequence[str],
    ratios: Sequence[float],
    settings: TrainingSettings,
    *,
    seed: int,
) -> list[PrunedChain]:
    """The pruned chains that become training rows.

    Args:
        pruned: chains at every ratio.
        ids: of all chains; their order decides which ratio is drawn for which.
        ratios: to draw from.
        settings: `ratios_a_problem` "one" keeps a chain at its drawn ratio, "all" keeps it at each; `rows` is the most
            rows, the first ones.
    """
    drawn = draw_ratios(ids, ratios, seed)
    every = settings.ratios_a_problem == "all"
    return [chain for chain in pruned if every or chain.ratio == drawn[chain.id]][: settings.rows]


def build_sft_rows(
    pruned: Iterable[PrunedChain],
    problems: dict[str, Problem],
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptSettings,
    *,
    held_out: float,
    seed: int,
    tails: Mapping[str, str] | None = None,
) -> list[SFTRow]:
    """Training rows, one for each pruned chain: the question with its marker, then the pruned chain and the answer.

    Args:
        pruned: the chains to learn from, each at the ratio that its row asks for.
        problems: id -> problem, for the question and the gold answer.
        held_out: share of the problems kept out of training, on which the loss is measured.
        tails: id -> the text after the chain; None for the closing phrase with the gold answer.

    Source: TokenSkip section 3.3; the response is the pruned chain and the untouched answer.
    """
    pruned = list(pruned)
    ids = list(dict.fromkeys(chain.id for chain in pruned))
    random.Random(seed).shuffle(ids)
    out = set(ids[: round(held_out * len(ids))])
    rows = []
    for chain in pruned:
        problem = problems[chain.id]
        prompt = build_prompt(tokenizer, problem.question, prompts, ratio=chain.ratio)
        tail = answer_tail(problem.answer) if tails is None else tails[chain.id]
        completion = build_completion(prompt, chain.text, tail, prompts)
        rows.append(
            SFTRow(id=chain.id, ratio=chain.ratio, prompt=prompt, completion=completion, held_out=chain.id in out)
        )
    return rows


def own_rows(
    chains: Sequence[ChainText],
    pruned: Sequence[PrunedChain],
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptSettings,
    settings: TrainingSettings,
    *,
    seed: int,
) -> list[SFTRow]:
    """The training rows of somebody's own chains.

    Args:
        chains: each with its question and answer.
        pruned: these chains at every ratio.
        settings: which rows are chosen and held out.
        seed: of drawn ratios and of what is held out.

    Raises:
        InputError: layout `think`, and a chain whose output is not known.
    """
    ratios = sorted({chain.ratio for chain in pruned})
    return build_sft_rows(
        choose_chains(pruned, [chain.id for chain in chains], ratios, settings, seed=seed),
        problems_of(chains),
        tokenizer,
        prompts,
        held_out=settings.held_out,
        seed=seed,
        tails=own_tails(chains) if prompts.layout == "think" else None,
    )


def problems_of(chains: Iterable[ChainText]) -> dict[str, Problem]:
    """id -> the question and answer of a chain."""
    return {
        chain.id: Problem(id=chain.id, question=chain.question or "", answer=chain.answer or "") for chain in chains
    }


def own_tails(chains: Iterable[ChainText]) -> dict[str, str]:
    """id -> what the model itself wrote after its chain of thought.

    Raises:
        InputError: a chain whose output is not known.
    """
    tails = {}
    for chain in chains:
        if not isinstance(chain, Chain | OutputChain):
            raise InputError(
                f"chain '{chain.id}': prompts.layout 'think' needs what followed it; give the whole output in place of "
                "the chain"
            )
        tails[chain.id] = chain.output.partition(chain.chain)[2]
    return tails


def encode_rows(
    rows: Iterable[SFTRow], tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> tuple[list[EncodedRow], int]:
    """Token ids of rows.

    Returns:
        The encoded rows, and how many were left out because they exceed `max_tokens`.
    """
    rows = list(rows)
    encoded = [
        EncodedRow(row.id, encode_prompt(tokenizer, row.prompt), encode_completion(tokenizer, row.completion))
        for row in rows
    ]
    kept = [row for row in encoded if len(row) <= max_tokens]
    return kept, len(rows) - len(kept)


def training_order(rows: Sequence[EncodedRow], epochs: float, seed: int) -> list[EncodedRow]:
    """Rows in the order of training: problems are shuffled anew each epoch, and a problem's rows are neighbours.

    Args:
        epochs: passes over the rows; a fraction is a part of a last pass.
    """
    problems: dict[str, list[EncodedRow]] = {}
    for row in rows:
        problems.setdefault(row.id, []).append(row)
    generator, total = random.Random(seed), max(1, round(epochs * len(rows)))
    order: list[EncodedRow] = []
    while len(order) < total:
        ids = list(problems)
        generator.shuffle(ids)
        order += [row for problem_id in ids for row in problems[problem_id]]
    return order[:total]


def even_out(rows: list[EncodedRow], multiple: int) -> list[EncodedRow]:
    """The rows, filled up to a multiple with rows that have no response and change no loss."""
    nothing = EncodedRow("", rows[0].prompt[:2], [])
    return rows + [nothing] * (-len(rows) % multiple)

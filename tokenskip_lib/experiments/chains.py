"""The chains of a run: how an answer becomes one, which are kept, and which are scored."""

from collections import Counter
from collections.abc import Callable, Sequence

from tokenskip_lib.core.profiles import Profile
from tokenskip_lib.core.records import Chain, InputError, Problem, ScoredChain, few_of
from tokenskip_lib.experiments.failures import without_answer, without_scores
from tokenskip_lib.experiments.run import Run
from tokenskip_lib.experiments.steps import CHAINS, SCORED, TRAIN_PROBLEMS
from tokenskip_lib.inference.engine import Generation
from tokenskip_lib.problems.grading import is_correct, split_output

DEMO_ADAPTER = "data/target_adapter"  # the demo's target model has it


def graded_chain(problem: Problem, generation: Generation, count: Callable[[str], int], profile: Profile) -> Chain:
    """The record of an answer: its chain of thought, whether it is right, and why it is not used for training."""
    parts = split_output(generation.text, profile.prompts.layout, profile.prompts.answer_phrases)
    max_chain_tokens, chain = profile.chains.max_chain_tokens, parts.chain.rstrip()
    tokens, correct = count(chain), is_correct(parts.prediction, problem.answer)
    reasons = {
        "cut_off": generation.cut_off,
        "no_answer": parts.prediction is None,
        "wrong": not correct,
        "empty": not chain.strip(),
        "too_long": max_chain_tokens is not None and tokens > max_chain_tokens,
    }
    return Chain(
        id=problem.id,
        question=problem.question,
        answer=problem.answer,
        output=generation.text,
        chain=chain,
        prediction=parts.prediction,
        is_correct=correct,
        chain_tokens=tokens,
        output_tokens=generation.tokens,
        cut_off=generation.cut_off,
        dropped=next((reason for reason, holds in reasons.items() if holds), None),
    )


def kept_chains(run: Run) -> list[Chain]:
    """The chains of stage 1 that may be used, in the order of the problems.

    Raises:
        InputError: problems wait for their answers; or every chain was dropped, and then one of them is shown.
    """
    answered = run.need(CHAINS, Chain, "generate")
    waiting = {problem.id for problem in run.store(TRAIN_PROBLEMS, Problem)} - {chain.id for chain in answered}
    if waiting := waiting - without_answer(run, "generate"):
        raise InputError(
            f"{run.folder / CHAINS}: {len(waiting)} training problems are not answered yet; run `python -m "
            "tokenskip_lib generate` with the same --set to its end first"
        )
    chains = run.in_problem_order(chain for chain in answered if chain.dropped is None)
    if not chains:
        raise InputError(_nothing_kept(run, answered))
    for chain in chains:
        if not chain.chain.strip():
            raise InputError(f"{run.folder / CHAINS}: chain '{chain.id}' is empty; mark it as dropped")
    return chains


def _nothing_kept(run: Run, answered: Sequence[Chain]) -> str:
    """Why no chain can be used: how many were dropped for what, one of them, and what to do."""
    reasons = few_of([f"{n} {why}" for why, n in Counter(chain.dropped for chain in answered).items()])
    chain = next((chain for chain in answered if chain.dropped == "wrong"), answered[0])
    output = " ".join(chain.output.split())
    output = output if len(output) <= 120 else f"{output[:120]}..."
    advice = "take a model that solves them (target.model)"
    if run.profile.target.adapter == DEMO_ADAPTER:
        advice = f"with {DEMO_ADAPTER} the demo's model knows gsm_symbolic alone, so {advice}, and target.adapter=null"
    return (
        f"{run.folder / CHAINS}: every chain was dropped ({reasons}); "
        f"problem '{chain.id}' has the answer {chain.answer}, and the model wrote: {output} - {advice}"
    )


def scored_chains(run: Run) -> list[ScoredChain]:
    """The chains that the profile's scorer scored: all that are kept, or as many as its training rows need."""
    profile, scorer = run.profile, run.profile.importance.scorer
    scored = run.need(SCORED, ScoredChain, "score")
    chains = run.in_problem_order(chain for chain in scored if chain.scorer == scorer)
    lost = without_scores(run)
    kept, rows = len([chain for chain in kept_chains(run) if chain.id not in lost]), profile.training.rows
    rows_a_chain = len(profile.pruning.ratios) if profile.training.ratios_a_problem == "all" else 1
    if len(chains) < kept and (rows is None or len(chains) * rows_a_chain < rows):
        raise InputError(
            f"{run.folder / SCORED}: scores by {scorer} for {len(chains)} of {kept} kept chains; run `python -m "
            "tokenskip_lib score` with the same --set, or for a study name it in the profile's "
            "importance.compare_with, with an importance.compare_size that is enough for its training.rows"
        )
    return chains

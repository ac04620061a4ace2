"""What prompts have in common, and the passes that compute it once. It knows token ids, and no model."""

from collections.abc import Sequence

from tokenskip_lib.models.batching import shared_length

MIN_SHARED = 16  # a beginning that all prompts of a batch share is computed once if it has this many tokens
SIBLING_SHARE = 0.6  # neighbours that share this much of what follows have the same question at different ratios


def shared_phases(prompts: Sequence[list[int]]) -> list[tuple[list[list[int]], list[int]]]:
    """The passes that bring every prompt into the cache, with shared beginnings once.

    The first pass has the beginning of all prompts (a template). The second has what neighbours share (a question
    that is asked at several ratios). The last has the rest of each prompt, at least one token.

    Args:
        prompts: token ids; prompts that share much are neighbours.

    Returns:
        Phases: rows of token ids, and for each row its row in the phase before (0 in the first).
    """
    common = common_beginning(prompts)
    groups = siblings(prompts, common)
    phases = [([prompts[0][:common]], [0])] if common else []
    if len(groups) == len(prompts):
        return [*phases, ([prompt[common:] for prompt in prompts], [0] * len(prompts))]
    lengths = [shared_length(group) for group in groups]
    middles = [group[0][common:length] for group, length in zip(groups, lengths, strict=True)]
    ends = [(index, prompt[lengths[index] :]) for index, group in enumerate(groups) for prompt in group]
    return [*phases, (middles, [0] * len(groups)), ([end for _, end in ends], [index for index, _ in ends])]


def common_beginning(prompts: Sequence[list[int]]) -> int:
    """The number of tokens that all prompts begin with; 0 if they are too few for a pass of their own."""
    shared = shared_length(prompts) if len(prompts) > 1 else 0
    return shared if shared >= MIN_SHARED else 0


def siblings(prompts: Sequence[list[int]], common: int) -> list[list[list[int]]]:
    """Runs of neighbours that share most of what follows the common beginning."""
    groups: list[list[list[int]]] = []
    for prompt in prompts:
        first = groups[-1][0] if groups else None
        longest = max(len(first or []), len(prompt)) - common
        if first is not None and shared_length([first, prompt]) - common >= SIBLING_SHARE * longest:
            groups[-1].append(prompt)
        else:
            groups.append([prompt])
    return groups

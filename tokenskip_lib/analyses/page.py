"""A page to explore a run in a browser: one HTML file that needs no server, no network and no Python.

The page's words and shapes are in page.html, page.css and page.js beside this file. This module writes what they show:
the metrics, the answers to some test problems, and what pruning would keep of the target model's own chains for them.
"""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from html import escape
from importlib import resources
from itertools import cycle
from pathlib import Path
from string import Template
from typing import Any

from tqdm import tqdm

from tokenskip_lib.core.records import ChainText, InputError, Prediction, Problem, PrunedChain, ScoredChain
from tokenskip_lib.core.settings import KeepSettings
from tokenskip_lib.core.store import file_errors, write_whole
from tokenskip_lib.evaluation.comparison import ORIGINAL, compare_methods, pair_outcomes
from tokenskip_lib.evaluation.methods import METHODS
from tokenskip_lib.evaluation.metrics import compute_metrics
from tokenskip_lib.experiments.evaluate import asked_levels, compared
from tokenskip_lib.experiments.run import Run
from tokenskip_lib.experiments.steps import PREDICTIONS, TEST_PROBLEMS
from tokenskip_lib.models.loading import TargetModel
from tokenskip_lib.models.tokens import batch_token_counter
from tokenskip_lib.pruning.prune import prune_many
from tokenskip_lib.pruning.registry import PRUNERS, build_scorer, find_scorer

MADE_BY = '<meta name="generator" content="tokenskip page">'  # in each page: such files may be written over
_DATA = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)
_FREE_COLOURS = ("#56b4e9", "#949494", "#fbafe4", "#ece133")  # of methods that state none that a browser knows
Spans = dict[str, list[tuple[int, int]]]  # of each chain, by its id
_WINDOW = 32  # chains that are scored between two steps of the progress bar


def make_page(run: Run, output: str, *, problems: int = 60) -> Path:
    """Write the page of an evaluated run.

    Args:
        output: the file to write, NAME.html. A page that this function made before is written over.
        problems: how many test problems are on the page, the first ones. The metrics are those of all problems.

    Raises:
        InputError: the run is not evaluated to its end, or `output` is no page and would be written over.
    """
    path = _page_path(output)
    write_whole(path, page_html(page_data(run, problems)).encode())
    return path


def page_data(run: Run, problems: int) -> dict[str, Any]:
    """Everything that a page shows, as JSON has it.

    Args:
        problems: as in `make_page`.

    Returns:
        - `points`: a row for each of P (method, level) pairs: its metrics (MetricRow), and against the original its
          difference in accuracy (a fraction) with a 95% interval, and how many problems it loses and gains.
        - `ratios`: R ratios, ascending. `methods` and `scorers`: each with a sentence about it.
        - `problems`: for each its P answers in the order of `points`, the original's chain and spans, and for each
          scorer R pruned chains, whose `kept` has a character for each span: "1" if the span is kept.
        - `texts`: the texts of chains. The other entries hold their numbers.

    Raises:
        InputError: the run is not evaluated to its end.
    """
    profile = run.profile
    pairs = asked_levels(profile)  # registers methods of one's own, too
    run.need(PREDICTIONS, Prediction, "evaluate")
    predictions = compared(run)
    points = _points(run, predictions)
    by_key: dict[tuple, Prediction] = {prediction.key: prediction for prediction in predictions}
    answered = {prediction.id for prediction in predictions}
    shown = [problem for problem in run.store(TEST_PROBLEMS, Problem) if problem.id in answered][:problems]
    chains = [
        ChainText(id=problem.id, question=problem.question, answer=problem.answer, chain=original.chain.rstrip())
        for problem in shown
        for original in [by_key[problem.id, *ORIGINAL]]
    ]
    levels = {level for method, level in pairs if METHODS[method].level == "ratio"}
    ratios = sorted(levels or profile.pruning.ratios)
    spans, pruned = _prune(run, [chain for chain in chains if chain.chain.strip()], ratios)
    texts: dict[str, int] = {}  # each text once: a method that changes nothing writes what the original writes

    def number(text: str) -> int:
        return texts.setdefault(text, len(texts))

    rows = [
        {
            "id": chain.id,
            "question": chain.question,
            "answer": chain.answer,
            "chain": number(chain.chain),
            "spans": spans.get(chain.id, []),
            "pruned": {
                scorer: [_pruned_row(one, len(spans[chain.id]), number) for one in by_id[chain.id]]
                for scorer, by_id in pruned.items()
                if chain.id in by_id
            },
            "answers": [_answer_row(by_key[chain.id, row["method"], row["ratio"]], number) for row in points],
        }
        for chain in chains
    ]
    return {
        "profile": profile.name,
        "model": profile.target.model,
        "commit": run.state["commit"],
        "source": PREDICTIONS,
        "source_sha256": hashlib.sha256((run.folder / PREDICTIONS).read_bytes()).hexdigest(),
        "n": len(answered),
        "batch_size": profile.evaluation.batch_size,
        "ratios": ratios,
        "rule": _say_rule(profile.pruning),
        "methods": _method_rows(row["method"] for row in points),
        "scorers": [{"name": name, "says": find_scorer(name).description} for name in pruned],
        "points": points,
        "problems": rows,
        "texts": list(texts),
    }


def page_html(data: dict[str, Any]) -> str:
    """A page that shows `data`, in which nothing is loaded from elsewhere and no text is HTML.

    Its content security policy lets this style and this script run, and nothing else.

    Args:
        data: see `page_data`.
    """
    folder = resources.files("tokenskip_lib.analyses")
    layout, style, script = ((folder / f"page.{end}").read_text("utf-8") for end in ("html", "css", "js"))
    # In JSON "<" is only ever in a string; there it may be escaped, and then no text can end the script element.
    inline = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return Template(layout).substitute(
        made_by=MADE_BY,
        title=escape(f"TokenSkip: {data['profile']}"),
        style=style,
        script=script,
        style_hash=_policy_hash(style),
        script_hash=_policy_hash(script),
        data=inline.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"),
    )


def read_page(html: str) -> dict[str, Any]:
    """The data of a page, as `page_data` returned it.

    Raises:
        InputError: it is no page of this library.
    """
    found = _DATA.search(html)
    if found is None or MADE_BY not in html:
        raise InputError("this is no page that `tokenskip page` made")
    return json.loads(found[1])


def _page_path(output: str) -> Path:
    """The page's path; a file that is there already is a page of this library."""
    path = Path(output)
    if path.suffix != ".html":
        raise InputError(f"--output {output}: the page is an HTML file; name it NAME.html")
    with file_errors(output, "read"):
        if path.exists() and (path.is_dir() or MADE_BY.encode() not in path.read_bytes()):
            raise InputError(f"{output}: there already, and not made by `page`; write to another file")
    return path


def _policy_hash(text: str) -> str:
    """The digest by which a content security policy knows a style or a script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _points(run: Run, predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """The metrics of every method and level, each with its comparison with the original; see `page_data`."""
    seed = run.profile.training_seed
    answers = pair_outcomes([predictions])  # refuses a run that is not finished
    compared_rows = compare_methods(answers, seed=seed).to_dict("records")
    comparison = {(row["method"], row["ratio"]): row for row in compared_rows}
    rows = []
    for row in compute_metrics(predictions, scorer=run.profile.pruned_by, seed=seed).to_dict("records"):
        against = comparison.get((row["method"], row["ratio"]))
        names = ("difference", "difference_low", "difference_high", "lost", "gained")
        level = METHODS[row["method"]].say_level(row["ratio"])
        own = {name: 0 if against is None else round(against[name], 4) for name in names}
        values = {str(name): None if value != value else value for name, value in row.items()}  # JSON has no NaN
        rows.append(values | {"level": level} | own)
    return rows


def _method_rows(names: Iterable[str]) -> list[dict[str, str]]:
    """Each method once, with what a page needs to draw and to explain it."""
    free, rows = cycle(_FREE_COLOURS), []
    for method in (METHODS[name] for name in dict.fromkeys(names)):
        colour = method.colour if re.fullmatch(r"#[0-9a-fA-F]{6}|[a-z]{3,}", method.colour) else next(free)
        rows.append(
            {
                "name": method.name,
                "says": method.description,
                "takes": method.level,
                "colour": colour,
                "marker": method.marker,
            }
        )
    return rows


def _say_rule(keep: KeepSettings) -> str:
    """What pruning does whatever the scores are, in sentences."""
    kinds = [name for name, is_kept in (("numbers", keep.keep_digits), ("operators", keep.keep_operators)) if is_kept]
    said = [f"{' and '.join(kinds).capitalize()} are kept before all else."] if kinds else []
    if keep.skip_spaces:
        said.append("Spaces beside operators are skipped first; they are not struck through.")
    return " ".join(said)


def _prune(
    run: Run, chains: Sequence[ChainText], ratios: Sequence[float]
) -> tuple[Spans, dict[str, dict[str, list[PrunedChain]]]]:
    """Score chains by every scorer of the profile, and prune them as the profile does (llmlingua mode: by spans).

    Returns:
        The spans of each chain, and for each scorer the chains at every ratio.
    """
    profile = run.profile
    target = TargetModel(profile.target, profile.prompts)
    count = batch_token_counter(target.tokenizer)
    prune = PRUNERS.get(profile.pruning.mode, prune_many)
    spans: Spans = {}
    pruned: dict[str, dict[str, list[PrunedChain]]] = {}
    for name in dict.fromkeys([profile.importance.scorer, *profile.importance.compare_with]):
        scorer = build_scorer(name, target, profile.importance, seed=profile.seed)
        scored: list[ScoredChain] = []
        for begin in tqdm(range(0, len(chains), _WINDOW), desc=f"importance: {name}"):
            scored += scorer.score(chains[begin : begin + _WINDOW])
        spans |= {chain.id: chain.spans for chain in scored}  # the same from every scorer
        by_id: dict[str, list[PrunedChain]] = {chain.id: [] for chain in scored}
        for one in prune(scored, ratios, count_tokens=count, keep=profile.pruning):
            by_id[one.id].append(one)
        pruned[name] = by_id
    return spans, pruned


def _pruned_row(pruned: PrunedChain, spans: int, number: Callable[[str], int]) -> dict[str, Any]:
    kept = set(pruned.kept or ())
    return {
        "kept": "".join("1" if index in kept else "0" for index in range(spans)),
        "text": number(pruned.text),
        "tokens": pruned.tokens,
    }


def _answer_row(prediction: Prediction, number: Callable[[str], int]) -> dict[str, Any]:
    return {
        "text": number(prediction.chain.strip()),
        "stated": prediction.prediction,
        "right": prediction.is_correct,
        "tokens": prediction.chain_tokens,
        "seconds": round(prediction.seconds, 3),
        "cut_off": prediction.cut_off,
    }

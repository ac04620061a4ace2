"""Anyone's predictions drawn over the published rows of a model on a problem set, with a table and a report.

Nothing is left out silently: the report counts the rows that were dropped, and says why.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from transformers import AutoTokenizer

from tokenskip_lib.core.locks import only_writer
from tokenskip_lib.core.outputs import lock_path
from tokenskip_lib.core.paths import local_folder, relative
from tokenskip_lib.core.provenance import commit
from tokenskip_lib.core.records import InputError
from tokenskip_lib.core.settings import TargetSettings
from tokenskip_lib.core.store import PIPE, file_errors, write_whole
from tokenskip_lib.evaluation.input_forms import GivenAnswer
from tokenskip_lib.evaluation.methods import METHODS
from tokenskip_lib.evaluation.own_predictions import check_stating
from tokenskip_lib.evaluation.placement import (
    PlacedAnswer,
    PlacedRow,
    grade_answers,
    pair_with_first,
    placed_rows,
    read_answers,
    say_dropped,
    say_tagged,
)
from tokenskip_lib.evaluation.published import THE_PAPER, choose_published, published_changes, short_name
from tokenskip_lib.evaluation.tables import row_table, table_csv
from tokenskip_lib.figures.results import Styles, accuracy_figure
from tokenskip_lib.figures.style import FREE_MARKERS, PALETTE, write_figure
from tokenskip_lib.models.loading import from_pretrained
from tokenskip_lib.models.tokens import CountTokens, batch_token_counter
from tokenskip_lib.problems.sets import PROBLEM_SETS, is_published

MADE_BY = "tokenskip place"  # said in the .json: such files may be written over
SUFFIXES = (".png", ".svg", ".csv", ".json")


@dataclass(frozen=True)
class Placement:
    """What `place` found and wrote.

    Attributes:
        model: of the published rows, as is `tested_on`.
        placed: a row for each method and ratio of the files (PlacedRow).
        published: the rows that are drawn behind (`find_published`).
        paired: later methods and ratios against the first (ComparisonRow).
        counted_by: what counted the tokens of the files.
        notes: what was dropped, what was not paired, and what needs a look, a line each.
        graded: the layout and the answer phrases.
        path: the figure.
    """

    model: str
    tested_on: str
    placed: pd.DataFrame
    published: pd.DataFrame
    paired: pd.DataFrame
    counted_by: str
    notes: list[str]
    graded: dict[str, object]
    path: Path


def place(
    sources: Sequence[str],
    against: str,
    output: str,
    *,
    tokenizer: str | None = None,
    layout: str = "answer",
    answer_phrases: Sequence[str] = (),
) -> Placement:
    """Grade files of predictions, and draw them over the published rows of a model on a problem set.

    Args:
        sources: files of predictions, in the forms of `evaluation.input_forms`. Each is a curve by the file's name,
            or several if its rows name methods.
        against: a profile's name, or MODEL/SET; see `choose_published`.
        output: the figure to write, NAME.png. NAME.svg, NAME.csv (every row drawn) and NAME.json are beside it.
        tokenizer: what counts the tokens, a folder or a hub name. None: the published model's. If that one is not at
            hand, the counts in the files, where every row has one.
        layout, answer_phrases: where and how outputs state their answer, as in `split_output`.

    Raises:
        InputError: nothing is published for `against`, no tokenizer is at hand, a file has nothing to place, or a
            file that this function did not make would be written over.
    """
    check_stating(layout, answer_phrases)
    published, model, tested_on = choose_published(against)
    path = _figure_path(output)
    read = {source: read_answers(source) for source in sources}
    count_tokens, counted_by = _token_counter([answers for answers, _ in read.values()], model, tokenizer)
    graded: list[PlacedAnswer] = []
    rows: list[PlacedRow] = []
    for name, (source, (answers, _)) in zip(_names(list(read)), read.items(), strict=True):
        own = grade_answers(answers, name, count_tokens, layout, answer_phrases)
        rows += placed_rows(own, tested_on=tested_on, source=source, counted_by=counted_by)
        graded += own
    paired, unpaired = pair_with_first(graded)
    notes = [_say_dropped(source, dropped, tested_on) for source, (_, dropped) in read.items() if dropped]
    notes += [line for source, (answers, _) in read.items() if (line := say_tagged(source, answers, layout))]
    made = Placement(
        model=model,
        tested_on=tested_on,
        placed=row_table(rows, PlacedRow),
        published=published,
        paired=paired,
        counted_by=counted_by,
        notes=notes + unpaired,
        graded={"layout": layout, "answer_phrases": list(answer_phrases)},
        path=path,
    )
    _write(made, list(read), against)
    return made


def report(made: Placement) -> str:
    """What `place` found, as lines for people."""
    first = made.placed.iloc[0]
    lines = [
        f"{made.model} on {made.tested_on}: {len(made.published)} published rows",
        f"chain tokens of your files: counted by {made.counted_by}",
        "accuracy: percent by the rule of TokenSkip's authors, as their paper's rows are; strictly graded beside it",
        "",
        _placed_table(made.placed).to_string(index=False),
    ]
    if len(made.paired):
        lines += ["", f"on the problems that {_point(first['method'], first['ratio'])} answered too, against it:"]
        lines += [_paired_table(made.paired).to_string(index=False)]
    if made.notes:
        lines += ["", *made.notes]
    changes = published_changes(made.model, made.tested_on)
    if len(changes):
        said = "published only as changes against another original, so not drawn (published_changes.csv has them)"
        lines += ["", f"{said}: {', '.join(changes['method'].unique())}"]
    written = [relative(made.path.with_suffix(suffix).resolve()) for suffix in SUFFIXES]
    return "\n".join([*lines, "", f"written: {', '.join(written)}"])


def placement_figure(made: Placement) -> Figure:
    """The files' points and curves, filled and with 95% intervals, over the published ones, which are hollow."""
    percent = ["accuracy", "accuracy_low", "accuracy_high"]
    metrics = made.placed.rename(columns={"tokens": "chain_tokens"}).assign(method=_with_sizes(made.placed))
    metrics[percent] = metrics[percent] / 100
    metrics["ratio"] = metrics["ratio"].fillna(1)
    title = f"{short_name(made.model)} on {made.tested_on}\n"
    figure = accuracy_figure(metrics, title, made.published, _styles(made))
    explained = "filled, with 95% intervals: your files; hollow: published; small numbers: the ratio asked for"
    figure.axes[0].annotate(explained, (0, 1), (0, 6), xycoords="axes fraction", textcoords="offset points")
    figure.axes[0].set_xlabel(
        f"chain tokens, mean over problems\n(of your files: counted by {made.counted_by})", parse_math=False
    )
    figure.axes[0].set_ylabel("accuracy (%), by the rule of TokenSkip's authors")
    return figure


def _styles(made: Placement) -> Styles:
    """The files' curves in strong colours, the paper's TokenSkip in its own, and all else that is published in grey."""
    markers = cycle(FREE_MARKERS)
    greys = {
        row["label"]: ("0.5", METHODS[row["method"]].marker if row["publication"] == THE_PAPER else next(markers))
        for row in made.published.drop_duplicates("label").to_dict("records")
        if row["publication"] != THE_PAPER or row["method"] not in ("original", "tokenskip")
    }
    strong = cycle(PALETTE[number] for number in (3, 2, 1, 4, 5))
    own = _with_sizes(made.placed).unique()
    return greys | {name: (colour, "o") for name, colour in zip(own, strong, strict=False)}


def _with_sizes(placed: pd.DataFrame) -> pd.Series:
    """The name of each row's curve, and how many answers its points have: "mine (n = 500)"."""
    sizes = placed.groupby("method")["n"].agg(["min", "max"]).loc[placed["method"]].itertuples(index=False)
    said = [f"{low}" if low == high else f"{low} to {high}" for low, high in sizes]
    return placed["method"] + [f" (n = {size})" for size in said]


def _figure_path(output: str) -> Path:
    """The figure's path; every file that will be written is new, or was made by this command before."""
    path = Path(output)
    if path.suffix != ".png":
        raise InputError(f"--output {output}: the figure is a PNG; name it NAME.png")
    with file_errors(output):
        there = [path.with_suffix(suffix) for suffix in SUFFIXES if path.with_suffix(suffix).exists()]
    if there and not _is_ours(path.with_suffix(".json")):
        raise InputError(f"{there[0]}: there already, and not made by `place`; write to another file")
    return path


def _is_ours(origin: Path) -> bool:
    try:
        said = json.loads(origin.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(said, dict) and said.get("made_by") == MADE_BY


def _names(sources: Sequence[str]) -> list[str]:
    """What each file is called in the figure: its name, or its path as given if two have one name."""
    stems = [Path(source).stem for source in sources]
    return [source if stems.count(stem) > 1 else stem for source, stem in zip(sources, stems, strict=True)]


def _token_counter(
    answers: Sequence[Sequence[GivenAnswer]], model: str, tokenizer: str | None
) -> tuple[CountTokens | None, str]:
    """What counts the tokens, and its name for people; None takes the counts that the files bring."""
    name = tokenizer or model
    try:
        cache = TargetSettings(model=name).cache_dir
        loaded = from_pretrained(AutoTokenizer, local_folder(name), setting="--tokenizer", cache_dir=cache)
    except InputError:
        if tokenizer is None and all(answer.chain_tokens is not None for own in answers for answer in own):
            return None, "the files themselves"
        if tokenizer is None:
            raise InputError(
                f"the tokenizer of {model} is not at hand; name one by --tokenizer, or give every row its own count "
                "(chain_tokens or cot_length)"
            ) from None
        raise
    foreign = ", not the model's own" if short_name(name).lower() != short_name(model).lower() else ""
    return batch_token_counter(loaded), f"the tokenizer of {short_name(name)}{foreign}"


def _say_dropped(source: str, dropped: Counter[str], tested_on: str) -> str:
    line = say_dropped(source, dropped)
    if any("'answer'" in reason for reason in dropped) and is_published(tested_on):
        known = PROBLEM_SETS[tested_on]
        line += f"; the gold answers of {tested_on} are in {known.hub}, split {known.splits['test']}"
    return line


def _write(made: Placement, sources: Sequence[str], against: str) -> None:
    published = made.published.rename(columns={"chain_tokens": "tokens"})
    published = published.assign(accuracy=(100 * published["accuracy"]).round(2))
    rows = pd.concat([made.placed, published]).astype({"n": "Int64", "no_answer": "Int64"})
    columns = [name for name in published if name not in ("publication", "label")]
    table = table_csv(rows[[*columns, *(name for name in made.placed if name not in columns)]]).encode()
    path = made.path.with_suffix(".csv")
    origin = {
        "made_by": MADE_BY,
        "against": against,
        "counted_by": made.counted_by,
        "commit": commit(),
        "source": str(path),
        "source_sha256": hashlib.sha256(table).hexdigest(),
        "predictions": {source: _digest(source) for source in sources if source != PIPE},
        "graded": made.graded,
        "paired": json.loads(made.paired.to_json(orient="records")),
        "notes": made.notes,
    }
    with file_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with only_writer(made.path, lock_path(made.path)):
        write_whole(path, table)
        write_figure(placement_figure(made), made.path, origin)


def _digest(source: str) -> str:
    return hashlib.sha256(Path(source).read_bytes()).hexdigest()


def _placed_table(placed: pd.DataFrame) -> pd.DataFrame:
    """The files' rows as people read them."""
    rows = placed.to_dict("records")
    return pd.DataFrame(
        {
            "prediction": [_point(row["method"], row["ratio"]) for row in rows],
            "n": placed["n"],
            "accuracy": [_with_interval(row, "accuracy") for row in rows],
            "strict": placed["accuracy_strict"].map("{:.1f}".format),
            "no answer": placed["no_answer"],
            "tokens": [_with_interval(row, "tokens") for row in rows],
        }
    )


def _paired_table(paired: pd.DataFrame) -> pd.DataFrame:
    """The paired comparisons as people read them."""
    rows = paired.to_dict("records")
    return pd.DataFrame(
        {
            "prediction": [_point(row["method"], row["ratio"]) for row in rows],
            "n": paired["n"],
            "points": [_with_interval(row, "difference", "{:+.1f}", 100) for row in rows],
            "gained": paired["gained"],
            "lost": paired["lost"],
            "p": ["< 0.0001" if row["p_value"] < 1e-4 else f"{row['p_value']:.2g}" for row in rows],
            "tokens, share": [_with_interval(row, "actual_ratio", "{:.3f}") for row in rows],
        }
    )


def _point(method: str, ratio: float) -> str:
    return method if ratio == 1 or pd.isna(ratio) else f"{method} at {ratio:g}"


def _with_interval(row: dict, name: str, form: str = "{:.1f}", factor: int = 1) -> str:
    value, low, high = (form.format(factor * row[f"{name}{end}"]) for end in ("", "_low", "_high"))
    return f"{value} ({low} to {high})"

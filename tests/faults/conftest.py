"""What `make test-faults` shares: a small model that solves its problems, a run on it, and figures that are printed."""

import csv
import json
from pathlib import Path

import pytest

from tokenskip_lib.core.profiles import load_profile
from tokenskip_lib.core.records import Problem
from tokenskip_lib.core.store import RecordStore

FIGURES = Path(__file__).resolve().parents[2] / "data" / "runs" / "faults.csv"
FIGURE = "figure"  # names what a test measured, among the properties of its report
NAMES = ("Tom", "Mary", "Sam", "Ann", "Ben", "Eve")
THINGS = ("apples", "pens", "books", "stamps")


def pytest_terminal_summary(terminalreporter):
    """Print every figure, and write them to data/runs/faults.csv."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    rows = [value for report in reports for name, value in report.user_properties if name == FIGURE]
    if rows:
        FIGURES.parent.mkdir(parents=True, exist_ok=True)
        with FIGURES.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([("what", "figure"), *sorted(map(tuple, rows))])
        terminalreporter.section("figures")
        for what, figure in sorted(map(tuple, rows)):
            terminalreporter.write_line(f"{what}: {figure}")


@pytest.fixture
def figure(record_property):
    """A function what, figure: notes what a test measured."""
    return lambda what, figure: record_property(FIGURE, [what, str(figure)])


def _sums(count: int) -> list[Problem]:
    """Problems with one sum each, all different."""
    return [
        Problem(
            id=f"sum{i}",
            question=f"{NAMES[i % 6]} has {3 + i} {THINGS[i % 4]} and buys {2 + i % 5} more. How many are there?",
            answer=str(5 + i + i % 5),
            solution=f"{NAMES[i % 6]} has {3 + i} + {2 + i % 5} = {5 + i + i % 5} {THINGS[i % 4]} in all.",
        )
        for i in range(count)
    ]


@pytest.fixture(scope="session")
def solver(tiny_tokenizer, tmp_path_factory) -> tuple[Path, list[Problem]]:
    """A folder with a small model, and problems that it solves because it has learnt their solutions by heart."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tokenskip_lib.models.prompts import build_prompt

    problems, tokenizer = _sums(32), tiny_tokenizer
    prompts = load_profile("smoke").prompts
    rows = []
    for problem in problems:
        prompt = build_prompt(tokenizer, problem.question, prompts)
        answer = f"{problem.solution}\n\nThe final answer is: $\\boxed{{{problem.answer}}}${tokenizer.eos_token}"
        rows.append([tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, answer)])
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=96, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.tensor([[*p, *a] + [tokenizer.pad_token_id] * (width - len(p) - len(a)) for p, a in rows])
    labels = torch.tensor([[-100] * len(p) + a + [-100] * (width - len(p) - len(a)) for p, a in rows])
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(400):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        if loss < 0.005:
            break
    folder = tmp_path_factory.mktemp("solver")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, problems


@pytest.fixture(scope="session")
def settings_file(solver, tmp_path_factory) -> Path:
    """A profile of the small model on its problems. Each command is told its own run_dir."""
    model, problems = solver
    folder = tmp_path_factory.mktemp("faults")
    RecordStore(folder / "train.jsonl", Problem).append(problems[:24])
    RecordStore(folder / "test.jsonl", Problem).append(problems[24:])
    overrides = {
        "target.model": str(model),
        "target.adapter": None,
        "target.device": "cpu",
        "target.dtype": "float32",
        "problems.train": str(folder / "train.jsonl"),
        "problems.test": str(folder / "test.jsonl"),
        "problems.train_size": None,
        "problems.test_size": None,
        "chains.max_new_tokens": 64,
        "chains.batch_size": 2,
        "evaluation.max_new_tokens": 64,
        "evaluation.batch_size": 2,
        "training.save_every": 2,
    }
    profile = load_profile("smoke", overrides).model_dump(mode="json") | {"name": "faults", "studies": {}}
    file = folder / "faults.yaml"
    file.write_text(json.dumps(profile), encoding="utf-8")  # JSON is YAML
    return file

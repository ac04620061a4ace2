"""The plan: counts against published models and real tensors, tokens against what a run really took."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, Qwen2Config

from tokenskip_lib.core.profiles import with_overrides
from tokenskip_lib.core.records import Chain, InputError, Prediction, Problem, SFTRow
from tokenskip_lib.core.settings import TargetSettings, TrainingSettings
from tokenskip_lib.core.store import RecordStore
from tokenskip_lib.experiments import costs, stages, steps
from tokenskip_lib.experiments.costs import CARDS, find_card, kv_cache_bytes, read_shape, shape_of_size
from tokenskip_lib.experiments.plan import ADAPTER_BYTES, _time, report
from tokenskip_lib.experiments.run import Run
from tokenskip_lib.experiments.workload import EVALUATIONS, Work, stage_work
from tokenskip_lib.inference import build
from tokenskip_lib.inference.engine import TransformersEngine
from tokenskip_lib.inference.kv_cache import new_cache
from tokenskip_lib.models.loading import load_tokenizer
from tokenskip_lib.models.prompts import build_prompt, encode_prompt
from tokenskip_lib.training.lora import train_adapter

STATE_NUMBERS = ("word_limit", "tale_ep")
STAGES = ("generate", "score", "train", "evaluate")
PUBLISHED = {
    494_032_768: Qwen2Config(
        vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
        num_key_value_heads=2, tie_word_embeddings=True,
    ),
    7_615_616_512: Qwen2Config(
        vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
        num_key_value_heads=4, tie_word_embeddings=False,
    ),
    8_030_261_248: LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, tie_word_embeddings=False,
    ),
}  # fmt: skip


@pytest.fixture
def tiny_shape(tiny_target, tiny_profile):
    config = AutoConfig.from_pretrained(tiny_target)
    return read_shape(AutoModelForCausalLM, config, tiny_profile.training)


@pytest.fixture
def run(tiny_profile):
    return Run.create(tiny_profile)


def _work(profile) -> dict:
    return {(part.stage, part.part): part for part in stage_work(profile, checkpointing=False)}


@pytest.mark.parametrize("parameters", PUBLISHED, ids=["Qwen2.5-0.5B", "Qwen2.5-7B", "Llama-3.1-8B"])
def test_parameters_are_the_published_ones_and_none_is_allocated(parameters):
    config = PUBLISHED[parameters]
    shape = read_shape(AutoModelForCausalLM, config)
    table = config.vocab_size * config.hidden_size
    assert shape.parameters == parameters and shape.output == table
    assert shape.body == parameters - table * (1 if config.tie_word_embeddings else 2)


def test_the_adapter_is_the_one_that_training_writes(tiny_shape, tiny_model, tiny_target, tiny_tokenizer, tmp_path):
    rows = [SFTRow(id=f"r{i}", ratio=0.5, prompt="Tom has", completion=" 3 apples", held_out=False) for i in range(2)]
    settings = TrainingSettings(rank=4, alpha=8, epochs=1, batch_size=2, accumulation=1)
    model = AutoModelForCausalLM.from_pretrained(tiny_target)
    summary = train_adapter(model, tiny_tokenizer, rows, settings, tmp_path / "adapter", base_name="tiny", seed=0)
    assert summary["trainable_parameters"] == tiny_shape.trainable
    written = (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size
    header = 200 * 2 * 7 * tiny_shape.layers  # a name, shape and place for A and B of seven linear layers a block
    assert 0 < written - tiny_shape.trainable * ADAPTER_BYTES < header
    assert tiny_shape.parameters == sum(parameter.numel() for parameter in tiny_model.parameters())


def test_the_cache_is_as_large_as_the_real_one(tiny_shape, tiny_model):
    cache = new_cache(tiny_model)
    with torch.inference_mode():
        tiny_model(input_ids=torch.ones(3, 11, dtype=torch.long), past_key_values=cache)
    real = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert kv_cache_bytes(tiny_shape, 3, 11, tiny_model.dtype.itemsize) == real > 0


def test_a_forward_pass_takes_the_flops_that_torch_counts(tiny_shape, tiny_model):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # By plain matrix products: the counter knows no formula for the CPU's fused attention.
    with FlopCounterMode(display=False) as counted, torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):
        tiny_model(input_ids=torch.ones(3, 11, dtype=torch.long))
    stated = costs.forward_flops(tiny_shape, tokens=33, context=11, predicted=33)
    assert counted.get_total_flops() == pytest.approx(stated, rel=0.02)  # norms are parameters and no product


def test_before_a_run_answers_are_expected_from_the_worked_solutions(tiny_profile, problems):
    tokenizer = load_tokenizer(tiny_profile.target)
    work = _work(tiny_profile)
    generate = work["generate", "original"]
    prompts = [build_prompt(tokenizer, problem.question, tiny_profile.prompts) for problem in problems[:3]]
    assert list(generate.reads) == [len(encode_prompt(tokenizer, prompt)) for prompt in prompts]
    assert generate.answers.source == "worked solutions"
    assert generate.written == generate.most_written == 3 * 8  # the solutions are longer than the budget
    assert work["evaluate", "tokenskip 0.5"].written == work["evaluate", "truncation 0.5"].written == 2 * 4
    assert work["evaluate", "lc_prompt 0.5"].written == work["evaluate", "original 1"].written == 2 * 8
    assert work["evaluate", "tokenskip 0.5"].read > work["evaluate", "truncation 0.5"].read  # the marker


def test_without_solutions_answers_are_expected_at_their_budget(tiny_profile, problems, tmp_path):
    bare = [problem.model_copy(update={"solution": ""}) for problem in problems]
    RecordStore(tmp_path / "bare.jsonl", Problem).append(bare[:3])
    settings = tiny_profile.problems.model_copy(update={"train": str(tmp_path / "bare.jsonl")})
    generate = _work(tiny_profile.model_copy(update={"problems": settings}))["generate", "original"]
    assert generate.answers.source == "max_new_tokens" and generate.written == generate.most_written == 24


def test_what_is_planned_is_what_a_run_takes(tiny_profile, problems, chain_of, monkeypatch):
    # Prompts that state a number of the original's answers are planned with another number.
    exact = {name: levels for name, levels in tiny_profile.evaluation.methods.items() if name not in STATE_NUMBERS}
    tiny_profile = with_overrides(tiny_profile, {"evaluation.methods": exact}, where="test")
    run, asked = Run.create(tiny_profile), []

    class CountingEngine(TransformersEngine):
        def generate(self, requests, **options):
            asked.append(sum(len(encode_prompt(self.tokenizer, request.prompt)) for request in requests))
            yield from super().generate(requests, **options)

    monkeypatch.setattr(build, "TransformersEngine", CountingEngine)
    before = _work(tiny_profile)
    chains = stages.generate(run)
    planned = before["generate", "original"]
    assert planned.read == asked.pop()
    assert sum(chain.output_tokens for chain in chains) <= planned.most_written
    after = _work(tiny_profile)["generate", "original"]
    assert after.written == sum(chain.output_tokens for chain in chains) and after.answers.source == steps.CHAINS

    # A random model solves nothing: the later stages get chains that one which can would have made.
    (run.folder / steps.CHAINS).unlink()
    run.store(steps.CHAINS, Chain).append(chain_of(problem) for problem in problems[:3])
    stages.score(run)
    rows = stages.prune(run)
    assert len(rows) == 3
    summary = stages.train(run)
    assert _work(tiny_profile)["train", "epochs: 1"].read == summary["tokens_an_epoch"]
    before = _work(tiny_profile)
    stages.evaluate(run)
    assert sum(asked) == sum(part.read for part in before.values() if part.stage == "evaluate")
    after = _work(tiny_profile)
    predictions = list(run.store(steps.PREDICTIONS, Prediction))
    for (stage, name), part in after.items():
        if stage != "evaluate":
            continue
        taken = [p.chain_tokens + p.answer_tokens for p in predictions if f"{p.method} {p.ratio:g}" == name]
        assert part.answers.source == steps.PREDICTIONS and part.written == sum(taken)
        assert part.most_written == before[stage, name].most_written


def test_records_of_another_model_are_not_read(run, tiny_profile, problems, chain_of):
    run.store(steps.CHAINS, Chain).append(chain_of(problem) for problem in problems[:3])
    other = tiny_profile.target.model_copy(update={"adapter": "elsewhere"})
    sources = [
        _work(profile)["generate", "original"].answers.source
        for profile in (tiny_profile, tiny_profile.model_copy(update={"target": other}))
    ]
    assert sources == [steps.CHAINS, "worked solutions"]


def test_planning_writes_nothing_and_leaves_a_torn_line_alone(run, tiny_profile, problems, chain_of):
    run.store(steps.CHAINS, Chain).append(chain_of(problem) for problem in problems[:3])
    path = run.folder / steps.CHAINS
    path.write_bytes(path.read_bytes()[:-20])
    before = {file: file.read_bytes() for file in run.folder.rglob("*")}
    generate = _work(tiny_profile)["generate", "original"]
    assert len(generate.answers.lengths) == 2 and generate.answers.source == steps.CHAINS
    assert {file: file.read_bytes() for file in run.folder.rglob("*")} == before


def test_twice_the_problems_are_twice_the_tokens(tiny_profile, problems, tmp_path):
    twins = [problem.model_copy(update={"id": f"{problem.id}-again"}) for problem in problems[:3]]
    RecordStore(tmp_path / "twice.jsonl", Problem).append([*problems[:3], *twins])
    settings = tiny_profile.problems.model_copy(update={"train": str(tmp_path / "twice.jsonl")})
    once, twice = (
        _work(profile)["generate", "original"]
        for profile in (tiny_profile, tiny_profile.model_copy(update={"problems": settings}))
    )
    assert (twice.read, twice.written, twice.most_written) == (2 * once.read, 2 * once.written, 2 * once.most_written)


def test_reading_is_bound_by_arithmetic_and_decoding_by_memory(tiny_profile, tiny_shape):
    generate = _work(tiny_profile)["generate", "original"]
    h100, h200 = (
        generate.seconds(tiny_shape, CARDS[name], batch_size=2, itemsize=2) for name in ("H100", "H200")
    )  # fmt: skip
    assert 0 < h200 < h100  # the same arithmetic, more bandwidth


def test_the_classifier_passes_are_counted_where_it_scores_or_prunes(tiny_profile):
    pruning = tiny_profile.pruning.model_copy(update={"mode": "llmlingua"})
    importance = tiny_profile.importance.model_copy(update={"scorer": "llmlingua2"})
    work = _work(tiny_profile.model_copy(update={"pruning": pruning, "importance": importance}))
    assert [key for key, part in work.items() if part.classifier] == [("score", "llmlingua2"), ("prune", "llmlingua")]


def test_a_published_adapter_needs_evaluation_alone(tiny_profile):
    evaluation = tiny_profile.evaluation.model_copy(update={"adapter": "somebody/adapter"})
    work = stage_work(tiny_profile.model_copy(update={"evaluation": evaluation}), checkpointing=True)
    assert {part.stage for part in work} == {"evaluate"}


def test_an_adapter_in_a_folder_is_what_a_runs_own_training_is_the_beginning_of(tiny_profile, make_adapter):
    evaluation = tiny_profile.evaluation.model_copy(update={"adapter": str(make_adapter(0))})
    work = stage_work(tiny_profile.model_copy(update={"evaluation": evaluation}), checkpointing=True)
    assert {part.stage for part in work} == {"generate", "score", "train", "evaluate"}


def test_rows_and_compared_chains_are_counted_up_to_their_limits(tiny_profile):
    training = tiny_profile.training.model_copy(update={"ratios_a_problem": "all", "rows": 4, "held_out": 0})
    importance = tiny_profile.importance.model_copy(update={"compare_with": ["cts"], "compare_size": 1})
    work = _work(tiny_profile.model_copy(update={"training": training, "importance": importance}))
    assert len(work["train", "epochs: 1"].reads) == 4
    assert len(work["score", "cts"].reads) == 1 and len(work["score", "selective_context"].reads) == 3


def test_a_card_is_found_by_its_exact_name_alone():
    target = TargetSettings(model="m", dtype="auto")
    assert find_card("rtx 4090", target) == (CARDS["RTX-4090"], torch.bfloat16)
    for name in ("T4", "V100-16GB"):  # these have no bfloat16
        assert find_card(name, target) == (CARDS[name], torch.float16)
    assert find_card("T4", TargetSettings(model="m", dtype="float32"))[1] == torch.float32


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("H10", "did you mean H100"),
        ("A100", "did you mean A100-40GB or A100-80GB"),
        ("4090", "did you mean RTX-4090"),
        ("RTX 3060", "--card RTX 3060: not one of H100, .*, cpu; on a machine that has the card, leave --card out$"),
        ("A10G", "not one of H100, .*, cpu; on"),
        ("V100", "did you mean V100-16GB or V100-32GB"),
    ],
)
def test_another_name_is_refused_and_no_other_card_is_taken_for_it(name, says):
    with pytest.raises(InputError, match=says):
        find_card(name, TargetSettings(model="m"))


def test_the_card_of_this_machine_is_read_and_measured(monkeypatch):
    # The device is made up, so its products run on the CPU; what is read from it is its name and its memory.
    device = torch.device("cuda", 1)
    properties = SimpleNamespace(name="NVIDIA GeForce RTX 3060", total_memory=12_000_000_000)
    asked = []
    monkeypatch.setattr(costs, "pick_device", lambda name: asked.append(name) or device)
    monkeypatch.setattr(costs, "pick_dtype", lambda dtype, device: torch.float16)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda asked: properties if asked == device else None)
    monkeypatch.setattr(torch, "ones", lambda *shape, dtype, device: torch.zeros(64, 64, dtype=dtype))
    found, dtype = find_card(None, TargetSettings(model="m", device="cuda:1"))
    assert (found.name, found.memory, dtype) == ("NVIDIA GeForce RTX 3060", 12e9, torch.float16)
    assert asked == ["cuda:1"] and found.flops > 0 and found.bandwidth > 0 and "measured here" in found.source


def test_a_cluster_takes_a_share_of_the_rows_each_and_the_bottleneck_is_named(tiny_profile):
    def stages_on(workers: int) -> dict:
        lines = report(tiny_profile, "H100", workers=workers, problems=1000).splitlines()
        rows = [line.split() for line in lines if line]
        start = next(number for number, row in enumerate(rows) if row[:2] == ["stage", "busy"])
        return {row[0]: row[1:] for row in rows[start + 1 :] if row[0] in STAGES}

    one, many = stages_on(1), stages_on(64)
    assert [row[0] for row in one.values()] == ["1"] * len(STAGES)
    assert many["generate"][0] == "64" and many["train"][0] == str(tiny_profile.training.accumulation)
    assert many["evaluate"][0] == "2"  # no more workers than problems
    text = report(tiny_profile, "H100", workers=64, problems=1000)
    assert re.search(r"The bottleneck is (train|evaluate), \d+% of the time: .* can be shared by \d+ at most\.", text)


def test_as_many_problems_as_asked_for_are_planned(tiny_profile):
    once = _work(tiny_profile)
    many = {(part.stage, part.part): part for part in stage_work(tiny_profile, checkpointing=False, number=3000)}
    assert len(many["generate", "original"].reads) == 3000
    assert many["generate", "original"].read == 1000 * once["generate", "original"].read
    assert many["train", "epochs: 1"].read > 500 * once["train", "epochs: 1"].read
    assert many["evaluate", "original 1"] == once["evaluate", "original 1"]


def test_the_busiest_worker_has_the_rows_that_cannot_be_dealt_evenly():
    work = Work("score", "own", [5.0] * 10, predicted=20)
    assert len(work.share(4).reads) == 3 and work.share(4).predicted == 6
    assert work.share(1) == work and Work("score", "own", [], 0).share(4).read == 0


def test_the_report_says_what_it_assumes_and_where_it_does_not_fit(tiny_profile, monkeypatch):
    text = report(tiny_profile, "H100")
    for word in ("40% of the FLOP/s", "60% of the bandwidth", "worked solutions", "at most", "data sheet", "AdamW"):
        assert word in text
    assert "DOES NOT FIT" not in text
    monkeypatch.setitem(CARDS, "T4", replace(CARDS["T4"], memory=1e4))
    assert "DOES NOT FIT" in report(tiny_profile, "T4")


def test_a_card_is_checked_before_a_model_is_looked_up(tiny_profile):
    target = tiny_profile.target.model_copy(update={"model": "nobody/nothing"})
    with pytest.raises(InputError, match="--card H10: not one of"):
        report(tiny_profile.model_copy(update={"target": target}), "H10")


def test_a_model_out_of_reach_is_planned_from_its_parameters(tiny_profile, real_tokenizer):
    target = tiny_profile.target.model_copy(update={"model": "nobody/nothing"})
    importance = tiny_profile.importance.model_copy(update={"scorer": "llmlingua2"})
    profile = tiny_profile.model_copy(update={"target": target, "importance": importance})
    text = report(profile, "H100", 7.6e9)
    assert "parameters  7,600,000,000" in text and "30.40 GB weights" in text and "llmlingua2" in text
    assert "The shape is assumed from --parameters: 34 blocks of width 4316." in text


@pytest.mark.parametrize("parameters", [7_615_616_512, 8_030_261_248])
def test_an_assumed_shape_is_near_that_of_a_published_model(parameters):
    recipe = TrainingSettings(rank=8)
    published = read_shape(AutoModelForCausalLM, PUBLISHED[parameters], recipe)
    shape = shape_of_size(parameters, recipe)
    for name in ("layers", "hidden", "trainable"):
        assert getattr(shape, name) == pytest.approx(getattr(published, name), rel=0.25), name


def test_a_plan_of_evaluation_alone_says_so(tiny_profile):
    evaluation = tiny_profile.evaluation.model_copy(update={"adapter": "somebody/adapter"})
    text = report(tiny_profile.model_copy(update={"evaluation": evaluation}), "H100")
    assert "Evaluation alone is planned: somebody/adapter comes from the hub." in text


@pytest.mark.parametrize(
    ("seconds", "printed"),
    [
        (0, "0.0 s"),
        (1e-5, "< 0.1 ms"),
        (0.0123, "12.3 ms"),
        (0.25, "0.2 s"),
        (99, "99.0 s"),
        (600, "10.0 min"),
        (7200, "2.0 h"),
    ],
)
def test_short_times_are_not_printed_as_nothing(seconds, printed):
    assert _time(seconds) == printed


def test_the_held_out_rows_are_read_as_often_as_training_reads_them(
    tiny_profile, tiny_target, tiny_tokenizer, tmp_path
):
    rows = [SFTRow(id=f"r{i}", ratio=0.5, prompt="Tom", completion=" has 3", held_out=i < 2) for i in range(18)]
    settings = TrainingSettings(rank=4, alpha=8, epochs=1, batch_size=1, accumulation=1)
    model = AutoModelForCausalLM.from_pretrained(tiny_target)
    train_adapter(model, tiny_tokenizer, rows, settings, tmp_path / "adapter", base_name="tiny", seed=0)
    log = [json.loads(line) for line in (tmp_path / "adapter" / "training_log.jsonl").read_text().splitlines()]
    assert sum("eval_loss" in line for line in log) == EVALUATIONS


def test_the_command_prints_the_plan_and_makes_no_folder(tokenskip, tmp_path, real_tokenizer):
    done = tokenskip("plan", "--profile", "smoke", "--card", "T4", "--set", f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert "134,515,008" in done.stdout and "tokenskip 0.5" in done.stdout and "T4" in done.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--set", "target.model=nobody/nothing"], "target.model 'nobody/nothing'"),
        (["--card", "H1000"], "--card H1000: not one of H100"),
        (["--set", "importance.scorer=positon"], "did you mean 'position'"),
    ],
)
def test_what_cannot_be_planned_is_one_line(tokenskip, arguments, says):
    done = tokenskip("plan", "--profile", "smoke", *arguments)
    assert done.returncode == 2 and says in done.stderr and done.stdout == "", done.stderr
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: ")

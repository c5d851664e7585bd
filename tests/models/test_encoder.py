"""Dropping tokens: equal to the literal reference, blind to batch-mates and padding, alike as graph and as Python."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from optimum_qala import LengthConfig, QuaLAMiniLMForQuestionAnswering
from optimum_qala.errors import ConfigurationError, LengthConfigError
from optimum_qala.models.layers import QuaLAMiniLMSelfAttention
from tests.conftest import tiny_config
from tests.models.batches import assert_equal_logits, assert_equal_tensors, make_batch, single
from tests.models.reference import run_reference


SCHEMES = {
    "bert": {},
    "roberta": {
        "position_scheme": "roberta",
        "pad_token_id": 1,
        "type_vocab_size": 1,
        "max_position_embeddings": 130,
        "layer_norm_eps": 1e-5,
    },
}
ROUNDING = 1e-4  # what float32 loses in four layers of wide random weights when shapes change; logits are of size 1
BUDGETS = ("1,0.8,0.8,0.5", "0.9,0.6,0.4,0.1", "0.3,0.3,0.3,0.3", "1,1,1,0.55")
SCORES = [
    ("question", "question"),
    ("attention", "question"),
    ("attention", "cls"),
    ("attention", "none"),
    ("answer", "question"),
    ("answer", "cls"),
    ("answer", "none"),
]
SOURCES = ["question", "attention", "answer"]


def make_model(seed: int = 0, **overrides) -> QuaLAMiniLMForQuestionAnswering:
    torch.manual_seed(seed)
    return QuaLAMiniLMForQuestionAnswering(tiny_config(**overrides)).eval()


def run(model, batch, **options):
    if model.config.type_vocab_size == 1:
        batch = {name: values for name, values in batch.items() if name != "token_type_ids"}
    with torch.no_grad():
        return model(**batch, output_survival=True, **options)


def assert_equals_reference(model, batch, budget, **options):
    output = run(model, batch, budget=budget, **options)
    length_config = LengthConfig.parse(budget)
    retention = [
        ratio if layer in model.config.dropping_layers else None for layer, ratio in enumerate(length_config.retention)
    ]
    options["exit_layer"] = length_config.exit_layer
    for row in range(len(batch["input_ids"])):
        alone = single(batch, row)
        length = alone["input_ids"].shape[1]
        types = alone["token_type_ids"] * (model.config.type_vocab_size > 1)
        expected = run_reference(model, alone["input_ids"], types, retention, **options)
        assert output.survival[row, :length].tolist() == expected.survival
        for name in ("start_logits", "end_logits"):
            wanted = torch.from_numpy(getattr(expected, name)).float()
            assert_equal_tensors(getattr(output, name)[row, :length], wanted, ROUNDING, f"{name} of row {row}")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("score_pooling", [0, 4])
@pytest.mark.parametrize(("token_scoring", "protected_tokens"), SCORES)
def test_dropping_equals_reference(token_scoring, protected_tokens, score_pooling, scheme):
    model = make_model(
        token_scoring=token_scoring,
        protected_tokens=protected_tokens,
        score_pooling=score_pooling,
        **SCHEMES[scheme],
    )
    batch = make_batch([24, 17, 9], [4, 6, 2], pad_to=26, pad_token_id=model.config.pad_token_id)
    for budget in BUDGETS:
        assert_equals_reference(model, batch, budget)


@pytest.mark.parametrize("token_scoring", SOURCES)
@pytest.mark.parametrize("budget", ["1,0.8,0.8,0.8@3", "0.9,0.6,0.6,0.6@2", "0.4,0.4,0.4,0.4@1", "1,1,1,1@2"])
def test_early_exit_equals_reference(token_scoring, budget):
    model = make_model(token_scoring=token_scoring, span_heads=True)
    assert_equals_reference(model, make_batch([24, 17, 9], [4, 6, 2], pad_to=26), budget)


@pytest.mark.parametrize("token_scoring", ["question", "attention"])
def test_span_heads_read_the_tokens_that_leave(token_scoring):
    model, plain = make_model(token_scoring=token_scoring, span_heads=True), make_model(token_scoring=token_scoring)
    batch = make_batch([24, 17, 9], [4, 6, 2], pad_to=26)
    for budget in BUDGETS:
        assert_equals_reference(model, batch, budget)
    plain.load_state_dict(model.state_dict(), strict=False)
    assert_equal_logits(run(model, batch), run(plain, batch), 0)
    with_heads, without = run(model, batch, budget=BUDGETS[1]), run(plain, batch, budget=BUDGETS[1])
    assert torch.equal(with_heads.survival, without.survival)
    assert not torch.equal(with_heads.start_logits, without.start_logits)


@pytest.mark.parametrize("token_scoring", SOURCES)
def test_exit_logits_are_those_of_passes_that_stop(token_scoring):
    model = make_model(token_scoring=token_scoring, span_heads=True, drop_layers=[1, 3])
    batch = make_batch([30, 14, 22], [4, 6, 2])
    for ratios in ("1,1,1,1", "1,0.6,0.6,0.6", "1,0.6,0.6,0.3"):
        output = run(model, batch, budget=ratios, output_exit_logits=True)
        assert len(output.exit_logits) == 4
        for exit_layer in (1, 2, 3):
            expected = run(model, batch, budget=f"{ratios}@{exit_layer}")
            start_logits, end_logits = output.exit_logits[exit_layer].unbind(dim=-1)
            assert_equal_tensors(start_logits, expected.start_logits)
            assert_equal_tensors(end_logits, expected.end_logits)
        assert_equal_logits(output, run(model, batch, budget=ratios), 0)
    assert len(run(model, batch, budget="1,1,1,1@2", output_exit_logits=True).exit_logits) == 2


@pytest.mark.parametrize("token_scoring", SOURCES)
@pytest.mark.parametrize(
    ("budget", "skip_layers", "num_run"),
    [
        ("1,1,0.5,0.3", (), 2),
        ("1,0.6,0.6,0.6@3", (), 2),
        ("0.6,0.6,0.6,0.6", (), 4),
        ("1,1,1,0.5", (1,), 2),
        ("1,1,1,1", (), 0),
        ("1,1,1,1@2", (), 0),
    ],
)
def test_layers_before_the_first_change_are_shared(token_scoring, budget, skip_layers, num_run):
    """Oracle: the pass that runs all of its layers."""
    model = make_model(token_scoring=token_scoring, span_heads=True)
    batch = make_batch([30, 14, 22], [4, 6, 2], pad_to=32)
    states = run(model, batch, budget="full", output_hidden_states=True).hidden_states
    expected = run(model, batch, budget=budget, skip_layers=skip_layers)
    ran = []
    for layer in model.quala.encoder.layer:
        layer.register_forward_hook(lambda *_: ran.append(1))
    output = run(model, batch, budget=budget, skip_layers=skip_layers, shared_states=states)
    assert_equal_logits(output, expected, 0)
    assert torch.equal(output.survival, expected.survival)
    assert len(ran) == num_run


@pytest.mark.parametrize("options", [{"budget": "1,1,1,1@2"}, {"budget": "1,0.5,0.5,0.5"}])
def test_shared_states_of_another_pass_are_refused(options):
    model = make_model(token_scoring="answer")
    states = run(model, make_batch([30, 14]), output_hidden_states=True, **options).hidden_states
    problem = (
        r"shared_states has shapes .* has 5 hidden states of shape \(2, 30, 32\): it stopped early, dropped tokens"
    )
    with pytest.raises(ConfigurationError, match=problem):
        run(model, make_batch([30, 14]), budget="1,1,1,0.5", shared_states=states)


def test_layer_drop_and_early_exit_combine():
    model = make_model(token_scoring="answer")
    for skip_layers in ((0,), (1,), (0, 1), (3,)):
        assert_equals_reference(model, make_batch([26, 18]), "1,0.7,0.5,0.5@3", skip_layers=skip_layers)


@pytest.mark.parametrize("seed", range(1, 6))
def test_dropping_of_an_unbatched_example_equals_reference(seed):
    model = make_model(seed)
    assert_equals_reference(model, make_batch([31], [5], seed=seed), "0.9,0.7,0.5,0.35")


@pytest.mark.parametrize(("min_tokens", "kept"), [(2, 5), (12, 12), (99, 30)])
def test_min_tokens_bounds_the_survivors(min_tokens, kept):
    model = make_model(token_scoring="attention", protected_tokens="none", min_tokens=min_tokens)
    batch = make_batch([30])
    assert (run(model, batch, budget="0.5,0.3,0.2,0.15").survival == 4).sum() == kept
    assert_equals_reference(model, batch, "0.5,0.3,0.2,0.15")


@pytest.mark.parametrize("drop_layers", [[1, 3], [0], [2, 3]])
def test_drop_layers_limit_where_tokens_leave(drop_layers):
    model = make_model(drop_layers=drop_layers)
    retention, ratio = [], 1.0
    for layer in range(4):
        ratio *= 0.6 if layer in drop_layers else 1.0
        retention.append(round(ratio, 4))
    batch = make_batch([28, 20])
    assert_equals_reference(model, batch, retention)
    survival = run(model, batch, budget=retention).survival[batch["attention_mask"] > 0]
    assert set(survival.tolist()) == {*drop_layers, 4}


@pytest.mark.parametrize("skip_layers", [(0,), (1,), (1, 2), (3,)])
def test_layer_drop_equals_reference(skip_layers):
    model = make_model()
    assert_equals_reference(model, make_batch([26, 18]), "1,0.7,0.7,0.4", skip_layers=skip_layers)


def test_layer_drop_of_a_dropping_layer_leaves_its_drop_to_the_next():
    model, batch = make_model(), make_batch([30])
    skipped = run(model, batch, budget="1,0.6,0.6,0.6", skip_layers=(1,)).survival
    assert sorted(set(skipped[0].tolist())) == [2, 4]
    assert (skipped == 4).sum() == 18


def test_layer_drop_in_a_layer_that_may_not_drop_changes_no_counts():
    model, batch = make_model(drop_layers=[1]), make_batch([30])
    assert set(run(model, batch, budget="1,0.6,0.6,0.6", skip_layers=(1,)).survival[0].tolist()) == {4}


@pytest.mark.parametrize(("token_scoring", "protected_tokens"), SCORES)
@pytest.mark.parametrize("score_pooling", [0, 4])
def test_logits_do_not_depend_on_batch_mates_or_padding(token_scoring, protected_tokens, score_pooling):
    model = make_model(token_scoring=token_scoring, protected_tokens=protected_tokens, score_pooling=score_pooling)
    lengths, questions = [100, 7, 45, 12, 61, 8], [12, 2, 20, 7, 1, 4]
    budgets = ["0.9,0.8,0.6,0.4", "0.5,0.2,0.1,0.02", "1,1,0.05,0.05"]
    budgets += ["0.9,0.4,0.4,0.4@2"] * model.config.has_span_heads
    for seed, budget in enumerate(budgets):
        batch = make_batch(lengths, questions, seed=seed)
        padded = make_batch(lengths, questions, seed=seed, pad_to=128)
        together, far = run(model, batch, budget=budget), run(model, padded, budget=budget)
        for row, length in enumerate(lengths):
            alone = run(model, single(batch, row), budget=budget)
            for other in (together, far):
                assert other.survival[row, :length].tolist() == alone.survival[0].tolist()
                for name in ("start_logits", "end_logits"):
                    actual, expected = getattr(other, name)[row, :length], getattr(alone, name)[0]
                    assert_equal_tensors(actual, expected, ROUNDING, f"{name} of row {row}")


def test_order_of_the_batch_does_not_matter():
    model = make_model()
    batch = make_batch([40, 9, 25], [3, 3, 9])
    forth = run(model, batch, budget="0.7,0.5,0.3,0.2")
    back = run(model, {name: values.flip(0) for name, values in batch.items()}, budget="0.7,0.5,0.3,0.2")
    assert_equal_tensors(back.start_logits.flip(0), forth.start_logits, ROUNDING)
    assert torch.equal(back.survival.flip(0), forth.survival)


def test_a_row_without_tokens_is_harmless():
    model = make_model()
    batch = make_batch([20, 20])
    expected = run(model, batch, budget="0.7,0.5,0.3,0.2")
    batch["attention_mask"][1] = 0
    output = run(model, batch, budget="0.7,0.5,0.3,0.2")
    assert torch.isfinite(output.start_logits).all()
    assert_equal_tensors(output.start_logits[0], expected.start_logits[0], ROUNDING)
    batch["attention_mask"][0] = 0
    assert torch.isfinite(run(model, batch, budget="0.7,0.5,0.3,0.2").start_logits).all()


def test_a_sequence_of_protected_tokens_only_loses_nothing():
    model = make_model()
    batch = make_batch([9], [6])  # [CLS] six words [SEP] [SEP]
    output = run(model, batch, budget="0.5,0.4,0.3,0.1")
    assert set(output.survival[0].tolist()) == {4}
    assert_equal_logits(output, run(model, batch), ROUNDING)


def test_protected_tokens_survive_harsh_budgets():
    batch = make_batch([40, 18], [7, 3])
    reached = {
        name: run(make_model(token_scoring="attention", protected_tokens=name), batch, budget=[0.05] * 4).survival == 4
        for name in ("question", "cls", "none")
    }
    question = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    question[0, :9] = question[1, :5] = question[0, 39] = question[1, 17] = True
    assert torch.equal(reached["question"], question)
    assert reached["cls"][:, 0].all()
    assert reached["cls"].sum(dim=1).tolist() == reached["none"].sum(dim=1).tolist() == [2, 2]


def test_dropped_tokens_keep_the_logits_they_left_with(tiny_model):
    """Their logits are those of a model that ends before the layer in which they left."""
    batch = make_batch([30, 22])
    output = run(tiny_model, batch, budget="1,0.8,0.5,0.3")
    for depth in (1, 2, 3):
        shallow = run(tiny_model, batch, budget="1,0.8,0.5,0.3", skip_layers=range(depth, 4))
        left = (output.survival == depth) & (batch["attention_mask"] > 0)
        assert left.any()
        assert_equal_tensors(output.start_logits[left], shallow.start_logits[left])
        assert_equal_tensors(output.end_logits[left], shallow.end_logits[left])


def test_base_model_keeps_the_hidden_states_of_dropped_tokens(tiny_model):
    batch = make_batch([24])
    with torch.no_grad():
        hidden = tiny_model.quala(**batch, budget="1,0.6,0.4,0.3").last_hidden_state
    expected = run_reference(tiny_model, batch["input_ids"], batch["token_type_ids"], [1, 0.6, 0.4, 0.3]).restored
    assert_equal_tensors(hidden[0], torch.from_numpy(expected).float(), ROUNDING)


@pytest.mark.parametrize(
    ("budget", "scored_layers"), [("1,0.8,0.8,0.5", [1, 3]), ("full", []), ("0.9,0.9,0.9,0.9", [0]), ("1,1,1,1", [])]
)
@pytest.mark.parametrize("token_scoring", SOURCES)
def test_a_layer_that_keeps_its_tokens_computes_no_scores(monkeypatch, token_scoring, budget, scored_layers):
    model = make_model(token_scoring=token_scoring)
    modules = [layer.attention.self for layer in model.quala.encoder.layer]
    scored, probabilities = [], QuaLAMiniLMSelfAttention.probabilities
    for index, head in enumerate(model.quala.encoder.span_heads or []):
        head.register_forward_hook(lambda *_, index=index: scored.append(index))

    def spy(self, *args):
        scored.append(modules.index(self))
        return probabilities(self, *args)

    monkeypatch.setattr(QuaLAMiniLMSelfAttention, "probabilities", spy)
    run(model, make_batch([30, 14]), budget=budget)
    assert scored == scored_layers


@pytest.mark.parametrize("drop_layers", [None, [1, 3]])
@pytest.mark.parametrize("skip_layers", [(), (1,)])
def test_retention_tensor_equals_budget(drop_layers, skip_layers):
    model = make_model(drop_layers=drop_layers)
    batch = make_batch([40, 13, 27])
    for ratios in ((1.0, 0.7, 0.7, 0.3), (1.0, 1.0, 1.0, 1.0), (1.0, 0.2, 0.2, 0.1)):
        retention = torch.tensor([ratios[layer] for layer in model.config.dropping_layers])
        expected = run(model, batch, budget=ratios, skip_layers=skip_layers)
        output = run(model, batch, retention=retention, skip_layers=skip_layers)
        real = batch["attention_mask"] > 0  # padding leaves at the first layer that selects, which differs
        assert_equal_tensors(output.start_logits[real], expected.start_logits[real], ROUNDING)
        assert_equal_tensors(output.end_logits[real], expected.end_logits[real], ROUNDING)
        assert torch.equal(output.survival[real], expected.survival[real])


@pytest.mark.parametrize("token_scoring", SOURCES)
@pytest.mark.parametrize("exact", ["budget", "retention"])
def test_sizes_say_how_wide_tensors_are_and_change_nothing(token_scoring, exact):
    """Sizes that the model counts itself, larger ones, and as many as there are tokens."""
    model = make_model(token_scoring=token_scoring, drop_layers=[1, 3])
    batch = make_batch([40, 13, 27], [9, 2, 5], pad_to=44)
    how = {"budget": {"budget": "1,0.7,0.7,0.3"}, "retention": {"retention": torch.tensor([0.7, 0.3])}}[exact]
    expected = run(model, batch, **how)
    for sizes in ([11, 28, 12], [12, 30, 20], [40, 44, 44], [44, 28, 28]):
        output = run(model, batch, sizes=torch.tensor(sizes), output_hidden_states=True, **how)
        assert [state.shape[1] for state in output.hidden_states[1:]] == [44, sizes[1], sizes[1], sizes[2]]
        assert_equal_logits(output, expected, ROUNDING)
        assert torch.equal(output.survival, expected.survival)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([10, 28, 12], "sizes counts 10 leading tokens that hold every question, but this batch needs 11 to 44"),
        ([45, 28, 12], "counts 45 leading tokens .* needs 11 to 44"),
        ([11, 27, 12], "sizes counts 27 tokens that leave layer 1, but this batch needs 28 to 44"),
        ([11, 28, 29], "counts 29 tokens that leave layer 3, but this batch needs 12 to 28; plan_sizes"),
        (
            [11, 28],
            r"sizes has shape \(2,\), but the model drops tokens in layers \[1, 3\]: it must have shape \(3,\)",
        ),
    ],
)
def test_sizes_that_do_not_fit_the_batch_are_refused(sizes, message):
    model = make_model(drop_layers=[1, 3])
    batch = make_batch([40, 13, 27], [9, 2, 5], pad_to=44)
    with pytest.raises(LengthConfigError, match=message):
        run(model, batch, budget="1,0.7,0.7,0.3", sizes=torch.tensor(sizes))


class Graph(nn.Module):
    """The model as an exported graph sees it: tensors in, start and end logits out."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, token_type_ids, retention):
        return self.model(input_ids, attention_mask, token_type_ids, retention=retention, return_dict=False)


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("token_scoring", SOURCES)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.*:DeprecationWarning")
def test_traced_graph_equals_model_for_other_shapes_and_budgets(token_scoring, attn_implementation):
    model = make_model(token_scoring=token_scoring, drop_layers=[1, 2, 3])
    model.set_attn_implementation(attn_implementation)
    example = make_batch([20, 14], [4, 3])
    with torch.no_grad():
        traced = torch.jit.trace(
            Graph(model), (*example.values(), torch.tensor([0.8, 0.6, 0.4])), check_trace=False, strict=False
        )
    for lengths, questions in (([40, 11, 25], [9, 2, 5]), ([13], [3]), ([8, 128], 2)):
        batch = make_batch(lengths, questions, seed=len(lengths))
        for ratios in ((1.0, 1.0, 1.0), (0.9, 0.5, 0.2), (0.3, 0.3, 0.3), (1.0, 0.7, 0.01)):
            retention = torch.tensor(ratios)
            expected = run(model, batch, retention=retention)
            with torch.no_grad():
                start_logits, end_logits = traced(*batch.values(), retention)
            assert_equal_tensors(start_logits, expected.start_logits, ROUNDING)
            assert_equal_tensors(end_logits, expected.end_logits, ROUNDING)


@pytest.mark.parametrize(
    ("option", "value"),
    [("token_scoring", "attention"), ("score_pooling", 0), ("min_tokens", 20), ("sep_token_id", 150)],
)
def test_option_changes_what_survives(tiny_model, option, value):
    batch = make_batch([40, 30])
    batch["input_ids"][:, 20] = 150
    before = run(tiny_model, batch, budget="0.8,0.6,0.5,0.4").survival
    setattr(tiny_model.config, option, value)
    assert not torch.equal(run(tiny_model, batch, budget="0.8,0.6,0.5,0.4").survival, before)


def test_answer_score_has_survivors_of_its_own():
    model, other = make_model(span_heads=True), make_model(token_scoring="answer")
    other.load_state_dict(model.state_dict())
    batch = make_batch([40, 30])
    question, answer = (run(one, batch, budget="0.8,0.6,0.5,0.4").survival for one in (model, other))
    assert not torch.equal(question, answer)


@pytest.mark.parametrize("token_scoring", ["question", "answer"])
def test_eager_and_sdpa_drop_alike(token_scoring):
    model, batch = make_model(token_scoring=token_scoring), make_batch([40, 13, 27])
    expected = run(model, batch, budget="0.9,0.7,0.5,0.2")
    model.set_attn_implementation("eager")
    output = run(model, batch, budget="0.9,0.7,0.5,0.2")
    assert_equal_logits(output, expected, ROUNDING)
    assert torch.equal(output.survival, expected.survival)

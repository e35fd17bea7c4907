"""The table of quantities: each against its definition in plain loops, missing values, and equal rows everywhere."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from test_measure_callback import model_of, train
from test_measure_kernels import make_model, make_windows

from forgetting.measuring import quantities
from forgetting.measuring.callback import ForgettingCallback
from forgetting.measuring.estimate import Mean, clustered_mean
from forgetting.measuring.losses import token_losses
from forgetting.measuring.measure import measure
from forgetting.measuring.quantities import AXES, BY_NAME, HELDOUT, ONE_PASS, PAIR, QUANTITIES, SHOWN, STUDY, PerToken
from forgetting.store.folder import RunFolder
from forgetting.tuning.run import measure_losses, measured_row

DOCS = Path(__file__).parents[2] / "docs"


def distributions(seed, count, size):
    """[count, size] probabilities of two models, and the true tokens."""
    random = np.random.default_rng(seed)
    base, tuned = (np.exp(random.normal(size=(count, size))) for _ in range(2))
    return (
        base / base.sum(1, keepdims=True),
        tuned / tuned.sum(1, keepdims=True),
        random.integers(0, size, count),
    )


def test_each_quantity_is_its_definition():
    base, tuned, true = distributions(0, 40, 7)
    top = base.argmax(1)
    rows = np.arange(len(true))
    arrays = PerToken(
        data_nll=-np.log(tuned[rows, true]),
        target_nll=-np.log(tuned[rows, top]),
        agrees=tuned.argmax(1) == top,
        kl=(base * (np.log(base) - np.log(tuned))).sum(1),
        soft_nll=-(base * np.log(tuned)).sum(1),
        base_log_prob=np.log(base[rows, top]),
        base_data_log_prob=np.log(base[rows, true]),
    )
    slow = {name: [] for name in BY_NAME}
    for p, q, token in zip(base.tolist(), tuned.tolist(), true.tolist(), strict=True):
        best = max(range(len(p)), key=p.__getitem__)
        slow["finetune_loss"].append(-math.log(q[token]))
        slow["forgetting_loss"].append(-math.log(q[best]))
        slow["forgetting_floor"].append(-math.log(p[best]))
        slow["forgetting"].append(math.log(p[best]) - math.log(q[best]))
        slow["soft_forgetting_loss"].append(-sum(a * math.log(b) for a, b in zip(p, q, strict=True)))
        slow["kl"].append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
        slow["agreement"].append(float(max(range(len(q)), key=q.__getitem__) == best))
        slow["data_loss_base"].append(-math.log(p[token]))
        slow["data_loss_tuned"].append(-math.log(q[token]))
    found = quantities.values(QUANTITIES, arrays)
    for name, expected in slow.items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-12, atol=1e-12, err_msg=name)


def test_a_quantity_whose_arrays_were_not_computed_is_no_number():
    with pytest.raises(AssertionError, match="not computed"):
        quantities.values(PAIR, PerToken(np.ones(3)))


def test_the_groups_hold_every_quantity():
    assert {one.name for one in (*HELDOUT, *PAIR)} == set(BY_NAME)
    assert [one.name for one in ONE_PASS] == [
        one.name for one in PAIR if one.name not in ("soft_forgetting_loss", "kl")
    ]
    assert [one.name for one in STUDY] == ["finetune_loss", *(one.name for one in ONE_PASS)]
    assert SHOWN[0].name == "forgetting"
    assert {one.name for one in SHOWN} == {one.name for one in PAIR}
    assert quantities.columns(HELDOUT) == ["finetune_loss", "finetune_loss_se"]


def test_words_and_axes_are_those_of_the_field():
    assert AXES["forgetting_loss"] == "forgetting loss L<sub>f</sub> (nats/token)"
    assert AXES["finetune_loss"] == "fine-tuning loss L<sub>ft</sub> (nats/token)"
    assert AXES["forgetting"] == "forgetting L<sub>f</sub> − floor (nats/token)"
    assert AXES["agreement"] == "agreement (%)"
    assert BY_NAME["kl"].label == "KL divergence, from base to tuned model"
    assert BY_NAME["forgetting_loss"].meaning == (
        "forgetting loss L_f, nats/token: against the base model's top tokens"
    )


def test_only_missing_numbers_are_none():
    found = {
        "forgetting": Mean(0.0, 0.0, 10, 2),
        "forgetting_loss": Mean(0.1 + 0.2, math.nan, 10, 1),
        "kl": Mean(math.nan, math.nan, 10, 2),
        "data_loss_tuned": Mean(math.inf, math.inf, 10, 2),
    }
    row = quantities.row(found)
    assert row == {
        "forgetting": 0.0,
        "forgetting_se": 0.0,
        "forgetting_loss": 0.1 + 0.2,
        "forgetting_loss_se": None,
        "kl": None,
        "kl_se": None,
        "data_loss_tuned": None,
        "data_loss_tuned_se": None,
    }
    json.dumps(row, allow_nan=False)
    assert list(quantities.not_finite(found)) == ["kl", "data_loss_tuned"]


def rows_everywhere(windows, tmp_path):
    """The rows of the callback, of `measure`, of a run, and of its file, of one trained model on one text."""
    callback = ForgettingCallback(windows, every=6)
    trainer = train(tmp_path / "t", "full", [callback])
    base, tuned = make_model("llama"), trainer.model
    measured = measure(base, tuned, text=windows).to_dict()
    stepped = measured_row(measure_losses(tuned, windows, windows, callback.measured[""][1], 512))
    folder = RunFolder(tmp_path / "run")
    folder.update(status="running")
    folder.append({"step": 6, **stepped})
    return callback.rows[-1], measured, stepped, folder.measurements()[0]


def test_the_callback_measure_and_a_run_give_the_same_rows(tmp_path):
    windows = make_windows([9, 17, 2, 30, 30, 5], documents=[0, 0, 1, 1, 2, 3])
    called, measured, stepped, stored = rows_everywhere(windows, tmp_path)
    names = quantities.columns(ONE_PASS)
    assert set(called) == {"step", "kept", *names}
    assert set(quantities.columns(PAIR)) < set(measured)
    assert set(stored) == {"step", *quantities.columns(STUDY)} | {
        f"{part}_{unit}" for part in ("finetune", "text") for unit in ("tokens", "documents")
    }
    for name in names:
        assert called[name] == measured[name] == stepped[name] == stored[name] is not None, name
    assert stepped["finetune_loss"] == stepped["data_loss_tuned"]  # on one text, by definition


def test_one_document_has_no_standard_error_anywhere(tmp_path):
    windows = make_windows([9, 17, 30], documents=[0, 0, 0])
    called, measured, stepped, stored = rows_everywhere(windows, tmp_path)
    for row, names in ((called, ONE_PASS), (measured, PAIR), (stepped, STUDY), (stored, STUDY)):
        for one in names:
            assert math.isfinite(row[one.name])
            assert row[one.se] is None


def test_reporters_get_numbers_only_and_the_history_null(tmp_path):
    seen = []

    class Listener(ForgettingCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append(dict(logs))

    windows = make_windows([9, 17, 30], documents=[0, 0, 0])
    trainer = train(tmp_path, "full", [Listener(windows, every=6)])
    logged = [logs for logs in seen if "forgetting/forgetting" in logs]
    assert len(logged) == 2
    assert all(isinstance(value, float) for logs in logged for value in logs.values())
    history = [logs for logs in trainer.state.log_history if "forgetting/forgetting" in logs]
    assert all(logs["forgetting/forgetting_se"] is None for logs in history)


def test_a_diverged_training_is_stopped_by_any_budget_and_has_no_number(tmp_path, caplog):
    class Broken(ForgettingCallback):
        def on_step_end(self, args, state, control, **kwargs):
            for parameter in kwargs["model"].parameters():
                parameter.data.fill_(float("nan"))
            super().on_step_end(args, state, control, **kwargs)

    callback = Broken(make_windows([9, 17], documents=[0, 1]), every=1, budget=100.0)
    trainer = train(tmp_path, "full", [callback], max_steps=5)
    assert trainer.state.global_step == 1
    assert [row["forgetting"] for row in callback.rows] == [0, None, 0]  # the untrained model is handed back
    assert "forgetting is nan at step 1: training diverged" in caplog.text


def test_the_mean_of_each_quantity_is_the_clustered_one():
    windows = make_windows([9, 17, 2, 30], documents=[0, 0, 1, 1])
    losses = token_losses(model_of("full").eval(), windows, None, batch_tokens=64)
    documents = windows.token_documents()
    found = quantities.means(quantities.values(HELDOUT, losses.per_token(None)), documents)
    assert found == {"finetune_loss": clustered_mean(losses.data_nll, documents)}


def test_the_documents_name_every_quantity():
    text = (DOCS / "measure.md").read_text(encoding="utf-8")
    for one in PAIR:
        assert f"`{one.name}`" in text

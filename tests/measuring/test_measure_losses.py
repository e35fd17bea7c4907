"""Token losses and base targets: reproducible, undisturbing, cached safely; adapters on and off."""

from __future__ import annotations

import logging
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors import safe_open
from test_measure_kernels import V, check, make_model, make_windows, twin

from forgetting.data import array_cache
from forgetting.errors import ForgettingError, UsageError
from forgetting.measuring import base_targets as targets_room
from forgetting.measuring import batches, heads, passes
from forgetting.measuring.base_targets import base_targets
from forgetting.measuring.losses import token_losses
from forgetting.studies.engines.context import worker_context

WINDOWS = make_windows([9, 17, 2, 30, 30, 5])


def adapted(name="llama", **options):
    torch.manual_seed(3)
    model = get_peft_model(make_model(name), LoraConfig(r=4, target_modules=["q_proj", "v_proj"], **options))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                parameter.normal_(0, 0.5)
    return model


def targets_of(model, **options):
    return base_targets(model, WINDOWS, **{"key": "k", "cache_dir": None, "batch_tokens": 64, **options})


def test_batches_hold_every_window_once_and_stay_small():
    groups = batches.plan(WINDOWS, 64)
    assert sorted(i for g in groups for i in g) == list(range(6))
    assert all(len(g) * WINDOWS.lengths[g].max() <= 64 for g in groups)
    places = np.concatenate([batches.build(WINDOWS, g).place for g in groups])
    assert sorted(places) == list(range(WINDOWS.n_predicted))


@pytest.mark.parametrize("batch_tokens", [1, 30, 64, 4096])
def test_padding_and_batch_size_do_not_matter(batch_tokens):
    base, tuned = make_model("llama"), make_model("llama", 1)
    alone = token_losses(tuned, WINDOWS, targets_of(base), batch_tokens=1)
    got = token_losses(tuned, WINDOWS, targets_of(base), batch_tokens=batch_tokens)
    np.testing.assert_allclose(got.target_nll, alone.target_nll, atol=1e-5)
    assert (got.agrees == alone.agrees).all()


def test_bit_reproducible_and_shards_add_up():
    tuned = adapted()
    targets = targets_of(tuned)
    one, two = (token_losses(tuned, WINDOWS, targets, batch_tokens=40) for _ in range(2))
    assert one.target_nll.tobytes() == two.target_nll.tobytes()
    shards = [token_losses(tuned, WINDOWS, targets, batch_tokens=40, shard=(r, 2)) for r in range(2)]
    assert (shards[0].data_nll + shards[1].data_nll).tobytes() == one.data_nll.tobytes()
    assert ((shards[0].agrees | shards[1].agrees) == one.agrees).all()


def test_an_untrained_adapter_forgets_exactly_nothing():
    model = get_peft_model(make_model("llama"), LoraConfig(r=4, target_modules="all-linear"))
    targets = targets_of(model)
    losses = token_losses(model, WINDOWS, targets, batch_tokens=64)
    assert (losses.target_nll == -targets.log_prob).all()
    assert losses.agrees.all()


def test_targets_of_a_peft_model_are_the_base_models():
    """PEFT pull request 3419, second mistake: 'before' must be the base, not a model with an adapter in it."""
    targets = targets_of(adapted())
    assert (targets.argmax == targets_of(make_model("llama")).argmax).all()
    prompt = get_peft_model(make_model("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    assert (targets_of(prompt).argmax == targets.argmax).all()
    assert (token_losses(prompt, WINDOWS, targets, batch_tokens=64).target_nll != -targets.log_prob).mean() > 0.9


def test_targets_are_shifted():
    """PEFT pull request 3419, first mistake: the logit at t predicts token t + 1, not token t."""
    model = make_model("llama")
    losses = token_losses(model, WINDOWS, None, batch_tokens=64)
    logits = model(input_ids=torch.from_numpy(WINDOWS.window(0)[0].astype(np.int64))[None]).logits[0].detach()
    right = -torch.log_softmax(logits, -1)[torch.arange(8), torch.from_numpy(WINDOWS.window(0)[0][1:].astype(np.int64))]
    np.testing.assert_allclose(losses.data_nll[:8], right, atol=1e-5)


def test_virtual_tokens_are_measured_behind_the_prompt():
    prompt = get_peft_model(make_model("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)).eval()
    got = token_losses(prompt, WINDOWS, None, batch_tokens=64).data_nll
    ids, _ = WINDOWS.window(3)
    with torch.no_grad():
        logits = prompt(input_ids=torch.from_numpy(ids.astype(np.int64))[None]).logits[0, 4:]
    expected = -torch.log_softmax(logits, -1)[torch.arange(len(ids) - 1), torch.from_numpy(ids[1:].astype(np.int64))]
    np.testing.assert_allclose(got[25:54], expected, atol=1e-5)


def test_only_predicted_positions_count():
    windows = make_windows([9, 17])
    windows.predicted[3:7] = False
    got = token_losses(make_model("llama"), windows, None, batch_tokens=64).data_nll
    everything = token_losses(make_model("llama"), make_windows([9, 17]), None, batch_tokens=64).data_nll
    np.testing.assert_allclose(got, np.delete(everything, [2, 3, 4, 5]), atol=1e-6)


def test_the_model_and_the_random_states_are_as_before():
    model = adapted(lora_dropout=0.5)
    model.train()
    model.base_model.model.model.layers[0].eval()
    frozen = next(p for n, p in model.named_parameters() if "lora_A" in n)
    frozen.requires_grad_(False)
    modes = [m.training for m in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    token_losses(model, WINDOWS, targets_of(model), batch_tokens=64)
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    assert (torch.get_rng_state() == states[0]).all()
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    assert random.getstate() == states[2]
    model(input_ids=torch.arange(9)[None], labels=torch.arange(9)[None]).loss.backward()  # training goes on


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": [1, 2, 3]},
    ],
    ids=["lora-head", "saved-head", "trained-tokens"],
)
@pytest.mark.parametrize("name", ["llama", "llama-tied"])
def test_adapted_heads(name, options, caplog):
    if name == "llama-tied" and "modules_to_save" in options:
        pytest.skip("PEFT refuses it")
    model = get_peft_model(make_model(name), LoraConfig(r=4, **options))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    caplog.set_level(logging.WARNING, logger="forgetting")
    targets = targets_of(model)
    base = targets_of(make_model(name))
    assert (targets.argmax == base.argmax).all()
    got = token_losses(model.eval(), WINDOWS, targets, batch_tokens=64)
    check(got.data_nll, [float(-p[token]) for token, p in twin(model, WINDOWS)])
    assert "full logits" not in caplog.text


def test_an_unknown_head_goes_through_full_logits_with_a_notice(caplog):
    model = make_model("llama")
    expected = token_losses(model, WINDOWS, None, batch_tokens=64).data_nll * 1.0
    model.lm_head.register_forward_hook(lambda module, args, output: output * 3)
    with caplog.at_level(logging.WARNING, logger="forgetting"):
        got = token_losses(model, WINDOWS, None, batch_tokens=64).data_nll
    assert "full logits" in caplog.text
    check(got, [float(-p[token]) for token, p in twin(model, WINDOWS)])
    assert not np.allclose(got, expected)


def test_bfloat16_is_accumulated_in_float32():
    model = make_model("llama").bfloat16()
    got = token_losses(model, WINDOWS, None, batch_tokens=64).data_nll
    with torch.no_grad():
        for w in (0, 3):
            ids = torch.from_numpy(WINDOWS.window(w)[0].astype(np.int64))
            hidden = model.model(input_ids=ids[None]).last_hidden_state[0].double()
            log_p = torch.log_softmax(hidden @ model.lm_head.weight.double().T, -1)
            start = WINDOWS.offsets[w] - w
            expected = -log_p[torch.arange(len(ids) - 1), ids[1:]]
            assert got[start : start + len(ids) - 1].mean() == pytest.approx(float(expected.mean()), rel=2e-3)


def test_minus_infinite_logits_are_handled():
    model = make_model("phi")
    with torch.no_grad():
        model.lm_head.bias[5] = -torch.inf
    windows = make_windows([20], vocabulary=4)
    targets = base_targets(model, windows, key="k", cache_dir=None, batch_tokens=64)
    assert np.isfinite(targets.entropy).all()
    assert np.isfinite(token_losses(model, windows, targets, batch_tokens=64).target_nll).all()


def test_rows_compare_a_shared_vocabulary():
    model = make_model("llama")
    windows = make_windows([20], vocabulary=50)
    got = base_targets(model, windows, key="k", cache_dir=None, batch_tokens=64, rows=50)
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(windows.input_ids.astype(np.int64))[None]).logits[0, :-1, :50]
    check(got.log_prob, torch.log_softmax(logits.double(), -1).max(-1).values.numpy())
    assert got.argmax.max() < 50


def test_cache_is_used_mapped_and_keyed(tmp_path, monkeypatch):
    model = make_model("llama")
    first = targets_of(model, cache_dir=tmp_path)
    monkeypatch.setattr(targets_room, "compute_arrays", lambda *a: pytest.fail("computed again"))
    again = targets_of(model, cache_dir=tmp_path)
    assert isinstance(again.argmax, np.memmap)
    for name in targets_room.ARRAYS:
        assert getattr(first, name).tobytes() == getattr(again, name).tobytes()
    for other in ({"key": "other"}, {"batch_tokens": 32}, {"rows": 90}):
        assert targets_room.targets_fingerprint(
            model, WINDOWS, other.get("key", "k"), other.get("batch_tokens", 64), other.get("rows")
        ) != (first.fingerprint)
    monkeypatch.setattr(targets_room.transformers, "__version__", "another")  # its code of the model may differ
    assert targets_room.targets_fingerprint(model, WINDOWS, "k", 64, None) != first.fingerprint


def test_windows_before_the_first_target_may_be_empty():
    windows = replace(WINDOWS, offsets=np.insert(WINDOWS.offsets, 0, 0), documents=np.insert(WINDOWS.documents, 0, 0))
    assert len(windows.window(0)[0]) == 0
    model = make_model("llama")
    found = base_targets(model, windows, key="k", cache_dir=None, batch_tokens=64)
    check(found.log_prob, targets_of(model).log_prob)


def fingerprint_of(path):
    with safe_open(path, "np") as file:
        return file.metadata()["fingerprint"]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-40])


def flip(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def garbage(path):
    path.write_bytes(b"\xff" * 100)


def empty(path):
    path.write_bytes(b"")


def stale(path):
    """A valid file that belongs to another base model."""
    stored = array_cache.read(path, fingerprint_of(path), targets_room.base_spec(WINDOWS))
    array_cache.write(path, {name: np.array(stored.array(name)) for name in targets_room.ARRAYS}, "f" * 64)


@pytest.mark.parametrize("damage", [truncate, flip, garbage, empty, stale])
def test_a_damaged_or_stale_cache_is_rebuilt(tmp_path, caplog, damage):
    model = make_model("llama")
    first = targets_of(model, cache_dir=tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    damage(path)
    with caplog.at_level(logging.WARNING, logger="forgetting"):
        again = targets_of(model, cache_dir=tmp_path)
    assert "recomputing it" in caplog.text
    assert again.entropy.tobytes() == first.entropy.tobytes()
    assert fingerprint_of(path) == first.fingerprint
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


def _compute_in_process(folder):
    torch.set_num_threads(1)
    return targets_of(make_model("llama"), cache_dir=folder).fingerprint


@pytest.mark.slow
def test_two_processes_at_once(tmp_path):
    with worker_context().Pool(2) as pool:
        assert len(set(pool.map(_compute_in_process, [tmp_path] * 4))) == 1
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


def test_out_of_memory_halves_the_batch(monkeypatch, caplog):
    sizes = []
    real = passes.hidden_states

    def tight(run, windows, size, *rest):
        sizes.append(size)
        if size > 40:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(run, windows, size, *rest)

    monkeypatch.setattr(passes, "hidden_states", tight)
    with caplog.at_level(logging.WARNING, logger="forgetting"):
        token_losses(make_model("llama"), WINDOWS, None, batch_tokens=100)
    assert sizes == [100, 50, 30]
    assert "out of memory: measuring again with batches of 30 tokens" in caplog.text
    with pytest.raises(ForgettingError, match="single window of 30 tokens"):
        passes.halving(lambda size: (_ for _ in ()).throw(torch.OutOfMemoryError()), WINDOWS, 30)


def test_refusals():
    short = make_windows([1, 1])
    with pytest.raises(UsageError, match="no position to measure"):
        token_losses(make_model("llama"), short, None, batch_tokens=64)
    wrong = make_windows([3, 3])
    wrong.predicted[0] = True
    with pytest.raises(UsageError, match="no context"):
        base_targets(make_model("llama"), wrong, key="k", cache_dir=None, batch_tokens=64)
    with pytest.raises(UsageError, match="do not belong"):
        token_losses(make_model("llama"), make_windows([3]), targets_of(make_model("llama")), batch_tokens=64)
    merged = adapted()
    merged.merge_adapter()
    with pytest.raises(UsageError, match="merged"):
        targets_of(merged)


def test_chunks_of_a_called_head_are_small():
    assert heads.CalledHead(lambda h: h, 128_256, 1.0, None).chunk() == 65
    assert V < heads.TILE_ROWS

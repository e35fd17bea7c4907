"""The report's HTML: content, order, escaping, missing parts. In a browser: test_report_browser.py."""

from __future__ import annotations

import html
import re
import shlex
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from forgetting.analysis.fit import Estimate, Fit, fit_from_published
from forgetting.analysis.laws import LAWS
from forgetting.config.schema import StudyConfig
from forgetting.display import charts as look
from forgetting.errors import ForgettingError
from forgetting.reporting import render_study, sections, write_study_report
from forgetting.reporting import series as groups

PAPER = {name: fit_from_published(f"kalajdzievski2024/{name}") for name in ("openorca", "news")}
TABLE_1 = {name: {key: e.value for key, e in fit.parameters.items()} for name, fit in PAPER.items()}
RANKS = (8, 16, 32, 64, 128, 256)
STEPS = (0, *range(50, 261, 10))
FLOOR = 0.42
LORA = tuple({"name": "lora", "rank": r, "scaling": "rank-stabilized"} for r in RANKS)


def law(name: str, output: str, P: float, N: float) -> float:
    return float(PAPER[name].predict(output, trainable_params=P, step=N).value)


def fit_of(laws: str, name: str, spans: dict[str, tuple[float, float]], **fields: Any) -> Fit:
    """A fit with Table 1's values, and resamples a little around them."""
    rng = np.random.default_rng(1)
    table = {key: TABLE_1[laws][key] for key in LAWS[name].names}
    spread = np.array([0.0 if key == "c_ft" else 0.002 for key in table])
    draws = np.array(list(table.values())) * (1 + spread * rng.normal(size=(60, len(table))))
    low, high = np.quantile(draws, (0.025, 0.975), axis=0)
    given = {
        "law": name,
        "label": laws,
        "parameters": {
            k: Estimate(v, float(a), float(b)) for (k, v), a, b in zip(table.items(), low, high, strict=True)
        },
        "objective": "least-squares",
        "objective_value": 0.001,
        "r2": {"forgetting_loss": 0.9736} | ({} if name == "linear" else {"finetune_loss": 0.991}),
        "n_points": 132,
        "n_runs": 6,
        "measured_range": spans,
        "confidence": 0.95,
        "warnings": [],
        "diagnostics": {"starts": 60, "agreeing": 58},
        "draws": draws.tolist(),
    }
    return Fit(**(given | fields))


def measured(laws: str, params: int, step: int, noise: tuple[float, float]) -> dict[str, Any]:
    """The numbers of one measurement."""
    if step:
        tuned = law(laws, "finetune_loss", params, step) + noise[0]
        forgot = law(laws, "forgetting_loss", params, step) + noise[1]
    else:
        tuned, forgot = law(laws, "finetune_loss", 2e7, 20), FLOOR
    excess = forgot - FLOOR
    means = {
        "finetune_loss": (tuned, 0.0061),
        "forgetting_loss": (forgot, 0.0043),
        "forgetting_floor": (FLOOR, 0.003),
        "forgetting": (excess, 0.0038 if step else 0.0),
        "agreement": (1 - 0.45 * excess, 0.0021),
        "data_loss_base": (2.1, 0.02),
        "data_loss_tuned": (2.1 + 0.3 * excess, 0.02),
    }
    counts = {"finetune_tokens": 20_480, "finetune_documents": 31, "text_tokens": 245_569, "text_documents": 62}
    times = {"train_seconds": 4.1 * step, "measure_seconds": 0.4 * step}
    values = {key: value for name, pair in means.items() for key, value in zip((name, f"{name}_se"), pair, strict=True)}
    return values | counts | times


def record(run: dict[str, Any], method: dict[str, Any]) -> dict[str, Any]:
    """A run.json."""
    return {
        "run_id": run["run_id"],
        "status": "done",
        "dataset": run["dataset"],
        "method": method,
        "seed": 0,
        "trainable_params": run["trainable_params"],
        "base": "f5db02db724555f92da89c216ac04704f23d4590",
        "versions": {"torch": "2.13.0", "transformers": "5.1.0", "peft": "0.21.2"},
        "hardware": {"device": "cpu", "threads": 2, "dtype": "float32"},
        "started": "2026-01-05T10:00:00+00:00",
        "finished": "2026-01-05T10:18:00+00:00",
        "notices": ["training made 1.3 passes over the data"],
    }


def fits_of(laws: str, rows: pd.DataFrame) -> dict[str, Fit]:
    """Both laws, with the measured range of `rows`."""
    spans = {c: (float(rows[c].min()), float(rows[c].max())) for c in ("finetune_loss", "trainable_params", "step")}
    x = spans.pop("finetune_loss")
    return {
        "linear": fit_of(laws, "linear", {"finetune_loss": x}),
        "shifted_power": fit_of(laws, "shifted_power", spans),
    }


def study(
    datasets: tuple[str, ...] = ("openorca", "news"),
    methods: tuple[dict[str, Any], ...] = LORA,
    names: dict[str, str] | None = None,
) -> tuple[StudyConfig, pd.DataFrame, list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Study simulated from Table 1 with noise: config, table, runs, fits. Data sets without laws get those of news."""
    rng = np.random.default_rng(0)
    names = {name: name for name in datasets} | (names or {})
    rows, runs = [], []
    for laws in datasets:
        for method in methods:
            rank = method.get("rank")
            parts = [names[laws], method["name"], *([f"r{rank}"] if rank else []), "s0-5f0c2a91d3"]
            run = {
                "dataset": names[laws],
                "method": method["name"],
                "rank": rank,
                "seed": 0,
                "run_id": "-".join(parts),
                "status": "done",
                "trainable_params": 2_498_560 * rank
                if rank
                else {"full": 6_738_415_616, "ia3": 614_400}[method["name"]],
            }
            runs.append(record(run, method))
            for step in STEPS:
                noise = tuple(rng.normal(0, 0.002, 2))
                truth = laws if laws in TABLE_1 else "news"
                rows.append(run | {"step": step} | measured(truth, run["trainable_params"], step, noise))
    table = pd.DataFrame(rows).astype({"rank": "Int64"})
    config = StudyConfig.model_validate(
        {
            "name": "paper-in-small",
            "model": {"source": "meta-llama/Llama-2-7b-chat-hf"},
            "text": {"source": "Salesforce/wikitext", "split": "test"},
            "datasets": {name: {"source": f"{name}.jsonl"} for name in datasets},
            "methods": list(methods),
        }
    )
    tuned = table[table["step"] > 0]
    fits = {names[d]: fits_of(d, tuned[tuned["dataset"] == names[d]]) for d in datasets if d in TABLE_1}
    return config, table, runs, fits


def fail_one(table: pd.DataFrame, runs: list[dict[str, Any]], why: str) -> str:
    """Make the first run a failed one that ends at step 100; returns its id."""
    run_id = str(runs[0]["run_id"])
    runs[0] |= {"status": "failed", "why": why}
    of_run = table["run_id"] == run_id
    table.drop(table[of_run & (table["step"] > 100)].index, inplace=True)  # noqa: PD002 - the test's own table
    table.loc[table["run_id"] == run_id, "status"] = "failed"
    return run_id


def with_words(page: str) -> str:
    """The page's text without scripts, styles and tags, spaces as one plain space."""
    text = re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", text).replace("\u00a0", " "))


@pytest.fixture(scope="module")
def page() -> str:
    return render_study(*study())


def test_the_headline_states_the_answer_with_its_numbers(page):
    text = with_words(page)
    assert (
        "On openorca, each nat of improvement in fine-tuning loss cost 1.73 nats of forgetting (95 % interval 1.7"
        in text
    )
    assert "On news, each nat of improvement in fine-tuning loss cost 1.06 nats" in text
    assert re.search(r"At step 260, LoRA rank 8 has forgotten 0\.55\d ± 0\.004 nats/token and rank 256 0\.59\d", text)
    assert re.search(r"agrees with the base model on 7\d\.\d ± 0\.2 % of tokens", text)


def test_a_slope_that_may_be_zero_is_not_a_finding():
    config, table, runs, fits = study(("news",))
    flat = {**fits["news"]["linear"].parameters, "c_fft": Estimate(0.3, -0.1, 0.7)}
    fits["news"]["linear"] = fit_of("news", "linear", {"finetune_loss": (1.9, 2.2)}, parameters=flat)
    assert "forgetting does not clearly grow" in with_words(render_study(config, table, runs, fits))


def test_sections_come_in_reading_order(page):
    places = [page.index(f'id="{name}"') for name in ("answer", "d0", "d1", "runs", "laws", "setup", "reading", "cite")]
    assert places == sorted(places)


def test_laws_show_parameters_intervals_the_gauge_and_the_papers_r2(page):
    text = with_words(page)
    assert "0.945 on OpenOrca and 0.974 on News" in text
    assert "0.960 on OpenOrca and 0.977 on News" in text
    assert text.count("held (gauge)") == 2
    assert "Gauge. A factor before the bracket" in text


def test_warnings_of_a_fit_are_shown():
    config, table, runs, fits = study(("news",))
    spans = {"finetune_loss": (1.9, 2.2)}
    fits["news"] = {
        "linear": fit_of(
            "news", "linear", spans, warnings=["2 runs only", "shifted_power was not fitted: it needs at least 3 ranks"]
        )
    }
    text = with_words(render_study(config, table, runs, fits))
    assert "news: 2 runs only" in text
    assert "Not fitted on news: it needs at least 3 ranks." in text


def test_cites_what_the_study_used_and_nothing_else():
    config, *rest = study(("news",), ({"name": "lora", "rank": 8, "scaling": "classic"},))
    page = render_study(config, *rest)
    assert all(number in page for number in ("2401.05605", "2106.09685", "1804.04235", "2411.00640"))
    assert "2312.03732" not in page.replace("plotly", "")
    assert "2205.05638" not in page


def test_a_failed_run_is_listed_with_its_reason_and_drawn_apart():
    config, table, runs, fits = study(("news",))
    failed = fail_one(table, runs, "the loss became NaN")
    page = render_study(config, table, runs, fits)
    assert re.search(rf'<tr class="failed">\s*<td[^>]*><code>{failed}</code><p class="why">the loss became NaN', page)
    assert "runs done, 1 failed" in page
    panel = groups.panels(config.datasets, groups.tidy(table), groups.group(groups.tidy(table), runs), fits)[0]
    assert failed not in set(panel.points["run_id"])
    assert set(panel.failed["run_id"]) == {failed}


def test_a_run_that_failed_before_its_first_measurement_is_listed():
    config, table, runs, fits = study(("news",))
    runs.append({"run_id": "news-lora-r999-s0-0", "status": "failed", "why": "out of memory"})
    assert "news-lora-r999-s0-0" in render_study(config, table, runs, fits)


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", "</script><img src=x onerror=alert(1)>", "{{ 7 * 7 }}"])
def test_untrusted_text_is_escaped_everywhere(text):
    config, table, runs, fits = study(("news",), names={"news": text})
    fail_one(table, runs, text)
    runs[1] |= {"notices": [text], "versions": {text: text}, "hardware": {text: text}, "base": text}
    spans = {"finetune_loss": (1.9, 2.2)}
    fits[text]["linear"] = fit_of("news", "linear", spans, warnings=[text], diagnostics={text: text})
    bare = {"draws": [], "warnings": [f"no intervals: {text}"]}  # the what-if panel gives the reason, too
    fits[text]["shifted_power"] = replace(fits[text]["shifted_power"], **bare)
    page = render_study(config, table, runs, fits)
    plain = render_study(*study(("news",)))
    assert page.count("<script") == plain.count("<script") + 1  # one data set more: config's and the table's
    assert page.count("</script") == plain.count("</script") + 1
    assert "<img" not in page
    assert text in page if text.startswith("{") else text not in page


def test_a_secret_in_the_configuration_is_not_in_the_page(monkeypatch):
    monkeypatch.setenv("MIRROR_PASSWORD", "planted-password")
    config, table, runs, fits = study(("news",))
    model = config.model.model_copy(update={"source": "https://me:hunter2@host/model"})
    text = config.text.model_copy(update={"source": "store/planted-password/text.jsonl"})
    config = config.model_copy(update={"model": model, "text": text})
    assert "planted-password" in config.to_yaml()
    page = render_study(config, table, runs, fits)
    assert "hunter2" not in page
    assert "planted-password" not in page
    assert "https://[secret]@host/model" in page


def test_without_fits_the_page_says_why():
    config, table, runs, _ = study(("news",))
    text = with_words(render_study(config, table, runs, {}))
    assert "On news, no line is fitted yet: no fit is stored for the 132 measurements of 6 finished runs." in text


def test_an_empty_study_still_renders():
    config, table, _, _ = study(("news",))
    text = with_words(render_study(config, table.iloc[:0], [], {}))
    assert "no run has finished" in text
    assert "No runs are stored yet." in text


def test_sparse_records_and_tables_are_enough():
    config, table, runs, fits = study(("news",))
    kept = ["dataset", "method", "rank", "seed", "run_id", "status", "step", "trainable_params"]
    kept += ["finetune_loss", "forgetting_loss", "forgetting"]
    page = render_study(config, table[kept], [{"run_id": run["run_id"]} for run in runs], fits)
    assert runs[0]["run_id"] in page
    assert "nan" not in with_words(page).lower()


def test_the_same_study_gives_the_same_page(page):
    assert page == render_study(*study())


def test_methods_beyond_lora_get_their_own_colour_and_symbol():
    _, table, runs, _ = study(("news",), (*LORA, {"name": "full"}, {"name": "ia3"}))
    rows = groups.tidy(table)
    series = groups.group(rows, runs)
    assert [s.label for s in series] == [*(f"LoRA rank {r}" for r in RANKS), "full fine-tuning", "IA³"]
    assert len({(s.light, s.symbol) for s in series}) == len({(s.dark, s.symbol) for s in series}) == 8


def test_methods_of_the_same_rank_are_distinguished_by_their_options():
    methods = tuple({"name": "lora", "rank": 64, "target_modules": m} for m in ("attention", "all-linear"))
    _, table, runs, _ = study(("news",), methods)
    for run, method in zip(runs, methods, strict=True):
        old = run["run_id"]
        run["run_id"] = old + method["target_modules"]
    first = table.index < len(table) // 2
    table["run_id"] = np.where(first, runs[0]["run_id"], runs[1]["run_id"])
    labels = {s.label for s in groups.group(groups.tidy(table), runs)}
    assert labels == {"LoRA rank 64 (target_modules=attention)", "LoRA rank 64 (target_modules=all-linear)"}


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def contrast(one: str, two: str) -> float:
    low, high = sorted((luminance(one), luminance(two)))
    return (high + 0.05) / (low + 0.05)


def style_of(page: str, name: str) -> list[str]:
    return re.findall(rf"--{name}: (#[0-9a-f]{{6}});", page)


@pytest.mark.parametrize(("mode", "surface"), [(0, "#ffffff"), (1, "#1a1d22")])
def test_contrast_of_points_and_text(page, mode, surface):
    assert style_of(page, "surface")[mode] == surface
    scale = (look.RANKS_LIGHT, look.RANKS_DARK)[mode]
    contrasts = [contrast(look.blend(scale, place), surface) for place in np.linspace(0, 1, 25)]
    assert min(contrasts) >= 3
    assert contrasts == sorted(contrasts)  # a larger rank stands out more
    assert all(contrast(other[mode], surface) >= 3 for other in look.OTHERS)
    for text in ("ink", "soft", "bad", "good", "wait", "accent"):
        for ground in ("surface", "page"):
            assert contrast(style_of(page, text)[mode], style_of(page, ground)[mode]) >= 4.5, (text, ground)


def test_the_file_is_written_completely_or_not_at_all(tmp_path):
    path = write_study_report(*study(("news",)), path=tmp_path / "report.html")
    assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")
    assert [f.name for f in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(ForgettingError, match="report cannot be written"):
        write_study_report(*study(("news",)), path=tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.full
def test_a_report_of_a_part_of_a_study_says_so_at_the_top():
    config, table, runs, fits = study(("news",))
    assert "Partial:" not in render_study(config, table, runs, fits, asked=len(runs))
    page = render_study(config, table, runs, fits, asked=len(runs) + 2)
    sentence = f"Partial: {len(runs)} of {len(runs) + 2} runs are done (2 not started)."
    assert sentence in page
    assert page.index(sentence) < page.index('class="lead">On')
    fail_one(table, runs, "the loss became NaN")
    assert f"{len(runs) - 1} of {len(runs)} runs are done (1 failed)" in render_study(config, table, runs, fits)


def test_a_pilot_that_ended_waits_for_no_more_runs():
    done = {"a": "done", "b": "done"}
    assert sections.partial(done, 2, "the band is within 10% of the budget") == (
        "The pilot ended with 2 runs: the band is within 10% of the budget."
    )
    assert sections.partial(done | {"c": "failed"}, 3, "no time is left") == (
        "The pilot ended with 2 runs (1 failed): no time is left."
    )
    assert sections.partial(done, 2) == ""
    assert sections.partial(done, 3).startswith("Partial: 2 of 3 runs are done (1 not started).")


def test_no_two_entries_of_the_menu_are_the_same():
    config, table, runs, fits = study(("news",))
    page = render_study(config.model_copy(update={"name": "news"}), table, runs, fits)  # a study's default name
    menu = re.findall(r"<a [^>]*>([^<]*)</a>", page[page.index("<nav") : page.index("</nav>")])
    assert len(set(menu)) == len(menu) > 5


def test_commands_name_the_studys_folder_as_a_shell_reads_it():
    config, table, runs, fits = study(("news",))
    page = html.unescape(render_study(config, table, runs, fits, folder="my 'best' study"))
    commands = [shlex.split(found) for found in re.findall(r"<code>(forgetting [^<]*)</code>", page)]
    assert {words[1] for words in commands} >= {"table", "study", "report", "predict", "plan"}
    assert {words[2] for words in commands} == {"my 'best' study"}
    predicted = next(words for words in commands if words[1] == "predict")
    sizes = sorted(table["trainable_params"].unique())
    assert [float(predicted[i + 1]) for i, word in enumerate(predicted) if word == "--params"] == sizes
    assert predicted[-2:] == ["--steps", "260"]
    assert "STUDY" not in page


def test_a_large_study_names_the_command_that_writes_its_rows(monkeypatch):
    config, table, runs, fits = study(("news",))
    assert 'class="csv-rows" data-panel="d0">"dataset,' in render_study(config, table, runs, fits)
    monkeypatch.setattr(sections, "SHOWN_ROWS", len(table) - 1)
    page = render_study(config, table, runs, fits, folder="s")
    assert "too large to include them" in page
    assert 'class="csv-rows"' not in page


def test_ranks_are_in_the_order_of_numbers_in_lists_and_legends():
    config, table, runs, fits = study(("news",))
    page = render_study(config, table, runs, fits)
    text = page[page.index('<section id="runs"') : page.index('<section id="laws"')]
    assert [int(rank) for rank in re.findall(r"<code>news-lora-r(\d+)-", text)] == [8, 16, 32, 64, 128, 256]
    legend = re.findall(r'aria-label="LoRA rank (\d+)" data-series', page)
    assert [int(rank) for rank in legend] == [8, 16, 32, 64, 128, 256]
    panel = groups.panels(config.datasets, groups.tidy(table), groups.group(groups.tidy(table), runs), fits)[0]
    listed = dict.fromkeys(row[0] for row in sections.measurement_rows(panel))
    assert [int(re.search(r"-r(\d+)-", run).group(1)) for run in listed] == [8, 16, 32, 64, 128, 256]

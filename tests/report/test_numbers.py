"""The numbers of tables, files, verdicts and pages: right, and the same ones everywhere."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from nas_dynamic.analysis import ranking
from nas_dynamic.analysis.paired import mean_estimate
from nas_dynamic.report.format import few, number, points, seeds_text, short
from nas_dynamic.report.measures import MEASURES, compare, measured
from nas_dynamic.report.records import Comparison, SeedResult, Subnet, TrainedUpdate
from nas_dynamic.report.run_folder import read_run, read_runs
from nas_dynamic.report.statistics import complexity_bands, pareto
from nas_dynamic.report.verdict import difference_text, verdict
from nas_dynamic.space import key
from tests.report.page import page_of

pytestmark = pytest.mark.xdist_group("trained run")


def read(path: Path):
    return json.loads(path.read_text())


def squeezed(text: str) -> str:
    """Text without the breaks of its lines."""
    return " ".join(text.split())


def test_every_measure_is_that_of_its_definition(compared):
    """Each figure of compare.json again, from the runs and the stand-alone scores on disk."""
    comparison = read(compared.folder / "compare.json")
    (kept,) = compared.folder.parent.glob("standalone-*.jsonl")
    alone = {
        tuple(sorted(line["architecture"].items())): line["accuracy"]
        for line in map(json.loads, kept.read_text().splitlines()[1:])
    }
    assert len(alone) == comparison["subnets"] == 12
    assert comparison["reached"] == [min(alone.values()), max(alone.values())]
    taus = {}
    for arm, place in itertools.product(("static", "dynamic"), (0, 1)):
        seed = comparison["seeds"][place]
        result = read(compared.folder / f"{arm}/seed-{seed}/result.json")
        standalone, accuracies, losses, sizes = (
            [of(subnet) for subnet in result["subnets"]]
            for of in (
                lambda subnet: alone[tuple(sorted(subnet["architecture"].items()))],
                lambda subnet: subnet["accuracy"],
                lambda subnet: -subnet["loss"],
                lambda subnet: subnet["parameters"],
            )
        )
        found = {name: values[place] for name, values in comparison["arms"][arm].items()}
        assert found.keys() == MEASURES.keys()
        taus.setdefault(arm, []).append(stats.kendalltau(losses, standalone).statistic)
        assert found["tau_by_loss"] == pytest.approx(taus[arm][-1])
        assert found["tau_by_accuracy"] == stats.kendalltau(accuracies, standalone).statistic
        assert found["complexity_bias"] == pytest.approx(
            ranking.complexity_bias(losses, standalone, sizes)
        )
        assert found["matched_tau"] == pytest.approx(
            ranking.matched_kendall_tau(losses, standalone, sizes)
        )
        assert found["pick"] == standalone[int(np.argmax(losses))]
        assert result["pick"] == result["subnets"][int(np.argmax(losses))]
        assert found["mean_accuracy"] == pytest.approx(np.mean(accuracies))
        assert found["seconds"] == result["cost"]["seconds"]
        baseline = stats.kendalltau(sizes, standalone).statistic
        assert comparison["tau_of_parameters"] == pytest.approx(baseline)
    interval = stats.ttest_rel(taus["dynamic"], taus["static"]).confidence_interval(0.95)
    found = comparison["differences"]["tau_by_loss"]
    assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high))
    assert found["value"] == pytest.approx(np.mean(np.subtract(taus["dynamic"], taus["static"])))


def test_table_file_verdict_and_page_of_one_comparison_agree(compared, pages):
    """One source of every number: what the JSON says is what is printed, and on the page."""
    written = Comparison.model_validate(read(compared.folder / "compare.json"))
    page, printed = pages["both"], squeezed(compared.printed)
    assert verdict(written) in printed
    assert verdict(written) in page.text
    rows = page.tables["static and dynamic"]
    assert rows[0] == ["mean over seeds 3 and 5", "static", "dynamic", "difference [95%]"]
    assert [row[0] for row in rows[1:]] == [measure.title for measure in MEASURES.values()]
    for row, (name, measure) in zip(rows[1:], MEASURES.items(), strict=True):
        means = [np.mean(written.arms[arm][name]) for arm in ("static", "dynamic")]
        cells = [*(number(mean, measure.form) for mean in means), difference_text(written, name)]
        assert row[1:] == cells
        assert " ".join([measure.title, *cells]) in printed

    # The words, the tiles, the diagnostics and the figures have the same τ, and the same pick.
    (name,) = (name for name in page.tables if name.startswith("Diagnostics"))
    diagnostics = {row[0]: row[1:] for row in page.tables[name][1:]}
    assert page.tables[name][0][1:3] == ["Kendall τ by the loss", "Kendall τ by the accuracy"]
    (scatter,) = (f for f in page.figures if f["title"].startswith("Inherited loss"))
    for arm in ("static", "dynamic"):
        for place, seed in enumerate(written.seeds):
            row = diagnostics[f"{arm}, seed {seed}"]
            for cell, measure in zip(row, ("tau_by_loss", "tau_by_accuracy"), strict=False):
                assert cell.split(" [")[0] == number(written.arms[arm][measure][place])
        tau, second = (
            number(np.mean(written.arms[arm][m])) for m in ("tau_by_loss", "tau_by_accuracy")
        )
        assert re.search(
            rf"with a Kendall τ by the loss of {tau} \[[^]]*\] to their stand-alone accuracy, the "
            rf"mean over seeds 3 and 5; by the accuracy, the second measure, it is {second}\.",
            page.words,
        )
        pick = f"{np.mean(written.arms[arm]['pick']):.1%}"
        assert f"reaches {pick} in stand-alone training, the mean over seeds 3 and 5" in page.words
        assert f"{arm}: Kendall τ by the loss {tau} " in scatter["label"]
        assert f"{arm}: τ {tau}" in page.words
    # Wherever a supernet's τ stands it is told by what.
    for words in (page.words, printed):
        named = re.sub(r"The parameter count[^.]{0,40} has a Kendall τ of", "", words)
        assert "τ of" not in re.sub(r"τ by the (loss|accuracy) of", "", named)
        assert "Kendall's τ" not in words


def test_a_page_computes_what_compare_has_written(compared):
    """The same measures from the files of the runs, by the path that two runs of train take."""
    static, dynamic = read_runs([compared.folder])
    written = static.comparison
    arms = [read_run(compared.folder / arm) for arm in ("static", "dynamic")]
    known = {key(subnet.architecture): subnet.accuracy for subnet in written.standalone}
    computed = compare(*(run.__class__(**vars(run) | {"standalone": known}) for run in arms))
    for name in ("seeds", "arms", "differences", "seeds_needed", "reached", "tau_of_parameters"):
        assert getattr(computed, name) == getattr(written, name), name
    assert compare(static, dynamic) == written


def test_a_comparison_of_fewer_seeds_than_there_are(compared, tmp_path):
    folder = Path(shutil.copytree(compared.folder, tmp_path / "both"))
    written = read(folder / "compare.json")
    (folder / "compare.json").write_text(json.dumps(written | {"seeds": [3]}))
    assert [[s.seed for s in run.seeds] for run in read_runs([folder])] == [[3], [3]]


def test_numbers_of_the_tables_are_those_of_the_results(runs, pages):
    page = pages["tiny"]
    results = [read(runs / f"tiny/seed-{seed}/result.json") for seed in (3, 5)]
    expected = [
        [
            f"tiny, seed {result['seed']}",
            "12",
            f"{np.mean([s['accuracy'] for s in result['subnets']]):.1%}",
            f"{result['pick']['accuracy']:.1%}",
            f"{result['pick']['parameters']:,}",
            str(result["validation_images"]),
        ]
        for result in results
    ]
    assert page.tables["Subnets with inherited weights"][1:] == expected

    accuracies = np.mean([[s["accuracy"] for s in r["subnets"]] for r in results], axis=0)
    sizes = [s["parameters"] for s in results[0]["subnets"]]
    best = brute_force(sizes, accuracies)
    rows = page.tables["Pareto set of tiny"][1:]
    assert sorted((row[0], row[2]) for row in rows) == sorted(
        (f"{sizes[n]:,}", f"{accuracies[n]:.1%}") for n in best
    )
    first = results[0]["subnets"][best[0]]["architecture"]
    assert any(all(c in row[-1] for c in first.values()) for row in rows)

    cost = page.tables["Cost of each training"]
    assert [row[1] for row in cost[1:3]] == [str(r["updates"]) for r in results]
    assert [row[-1] for row in cost[1:3]] == ["not measured"] * 2 or "J" in cost[1][-1]
    peak = results[0]["cost"]["peak_memory"] / 2**20
    assert cost[1][4] in (f"{peak:.0f} MiB", f"{peak / 1024:.2f} GiB")

    criteria = {row[0]: row[1] for row in page.tables["Ten criteria"][1:]}
    assert len(criteria) == 10
    assert criteria["novelty"] == criteria["generalizability"] == "not measured"
    picks = [result["pick"]["accuracy"] for result in results]
    assert f"{np.mean(picks):.1%}" in criteria["solution quality"]
    assert f"sd {np.std(picks, ddof=1):.1%}" in criteria["stability"]
    assert "3, 5" in criteria["reproducibility"]
    ranks = [stats.rankdata([-s["loss"] for s in r["subnets"]]) for r in results]
    tau = np.mean([stats.kendalltau(sizes, of_seed)[0] for of_seed in ranks])
    assert criteria["interpretability"] == f"Kendall τ with the parameter count {number(tau)}"

    picks = np.mean([result["pick"]["accuracy"] for result in results])
    assert f"that of the lowest loss, classifies {picks:.1%} of" in page.words
    agreement = stats.kendalltau(*[[s["loss"] for s in r["subnets"]] for r in results])[0]
    text = f"seeds agree with a Kendall τ by the loss of {number(agreement)}"
    assert text in page.words


def test_two_runs_without_stand_alone_accuracies_are_compared_by_their_mean(runs, pages):
    means = {
        name: [read(runs / f"{name}/seed-{s}/result.json")["mean_accuracy"] for s in (3, 5)]
        for name in ("still", "tiny")
    }
    difference = mean_estimate(np.subtract(means["tiny"], means["still"]))
    text = (
        "mean accuracy, inherited weights of tiny less that of still is "
        f"{points(difference)}, the mean over seeds 3 and 5"
    )
    assert text in pages["still tiny"].words
    table = pages["still tiny"].tables["still and tiny"]
    assert [row[0] for row in table[1:]] == [
        MEASURES[name].title for name in ("mean_accuracy", "seconds")
    ]


def a_comparison(taus: list[float], **changes) -> Comparison:
    found = mean_estimate(taus)
    values = {
        "seeds": list(range(len(taus))),
        "arms": {"static": {}, "dynamic": {}},
        "differences": {"tau_by_loss": found, "tau_by_accuracy": mean_estimate([0.5] * 3)},
        "seeds_needed": 100 if found.low < -0.05 else 2,
        "subnets": 5,
        "reached": (0.1, 0.2),
        "tau_of_parameters": 0.3,
        "standalone_epochs": 1,
        "curves": {"static": "cosine", "dynamic": "polynomial"},
    }
    return Comparison.model_validate(values | changes)


@pytest.mark.parametrize(
    ("differences", "text"),
    [
        ([0.1, 0.11, 0.12], "+0.110 [+0.085, +0.135], the mean over seeds 0, 1 and 2"),
        ([0.1, 0.11, 0.12], "So dynamic ranks these subnets better than static does."),
        ([-0.1, -0.11, -0.12], "So dynamic ranks these subnets worse at this budget than static"),
        (
            [0.3, -0.2, 0.1],
            "higher than static; the interval holds 0: nothing can be told.",
        ),
        ([0.3, -0.2, 0.1], "At this spread about 100 seeds would give ±0.05."),
        ([0.01, -0.011, 0.0], "If there is a difference, it is small."),
        ([0.1, 0.11, 0.12], "dynamic ranks 0.11 higher than static; the interval excludes 0."),
        ([-0.3], "dynamic ranks 0.30 lower than static, in one seed."),
        ([0.3], "is +0.300 in seed 0. One seed tells nothing about the next one: run more."),
        ([0.1, math.nan], "Kendall τ by the loss is undefined"),
        ([0.1] * 3, "By the accuracy, the second measure, the difference is +0.500"),
    ],
)
def test_the_verdict_is_what_the_interval_tells(differences, text):
    said = verdict(a_comparison(differences))
    assert text in said
    told = mean_estimate(differences)
    shown = told.low > 0 or told.high < 0
    assert ("--static-curve polynomial" in said) == shown
    alike = {"static": "polynomial", "dynamic": "polynomial"}
    assert "--static-curve" not in verdict(a_comparison(differences, curves=alike))


@pytest.mark.parametrize(("sign", "word"), [(1, "more"), (-1, "less")])
def test_the_verdict_without_stand_alone_accuracies(sign, word):
    found = {"mean_accuracy": mean_estimate([sign * 0.1, sign * 0.11, sign * 0.12])}
    said = verdict(a_comparison([0.0], differences=found))
    assert f"So subnets of dynamic are {word} accurate than those of static." in said
    assert "points" in said


def test_a_subnet_that_diverged_is_ranked_last():
    standalone = [0.8, 0.1, 0.9, 0.7]
    subnets = [
        Subnet({"layer": n}, 0.5, loss, n) for n, loss in enumerate([1.0, math.nan, 0.5, 2.0])
    ]
    seed = SeedResult(
        seed=0,
        subnets=subnets,
        validation_images=9,
        group_by=None,
        cost={"seconds": 1.0},
        updates=1,
        updates_by_group={},
        trace=[],
        pairs=[],
    )
    found = measured(seed, {key({"layer": n}): value for n, value in enumerate(standalone)})
    assert found["tau_by_loss"] == pytest.approx(1)
    assert found["pick"] == 0.9
    assert seed.pick is subnets[2]
    assert math.isnan(found["tau_by_accuracy"])
    assert measured(seed, {}).keys() == {"mean_accuracy", "seconds"}


def test_supernet_that_ranks_nothing(a_run, tmp_path):
    folder = a_run("alike", [0.5] * 4)
    (tmp_path / "standalone.csv").write_text("layer,accuracy\nk0,0.7\nk1,0.8\nk2,0.9\nk3,0.6\n")
    page = page_of([folder], tmp_path, standalone=tmp_path / "standalone.csv")
    assert "there is no ranking" in page.words
    assert "nan" not in page.words
    (name,) = (name for name in page.tables if name.startswith("Diagnostics"))
    assert page.tables[name][1][1] == "undefined"


def brute_force(sizes, accuracies) -> list[int]:
    places = list(zip(sizes, accuracies, strict=True))
    return [
        n
        for n, (size, accuracy) in enumerate(places)
        if not any(s <= size and a >= accuracy and (s, a) != (size, accuracy) for s, a in places)
    ]


def test_pareto_set_against_brute_force():
    generator = np.random.default_rng(0)
    for count in [1, 2, 5, 30, 100] * 20:
        sizes, accuracies = generator.integers(0, 12, (2, count))
        found = np.flatnonzero(pareto(sizes, accuracies / 10))
        assert found.tolist() == brute_force(sizes, accuracies / 10)


def test_pareto_points_are_those_that_are_outlined(pages):
    page = pages["tiny"]
    (figure,) = (f for f in page.figures if f["title"].startswith("Accuracy by size"))
    assert len(figure["tips"]) == 12
    rows = page.tables["Pareto set of tiny"][1:]
    assert f"{len(rows)} of them in the Pareto set" in figure["label"]
    # The outlined points come last.
    outlined = {tip.removeprefix("tiny: ") for tip in figure["tips"][-len(rows) :]}
    assert outlined == {f"{row[2]}, {row[0]} parameters. {row[-1]}" for row in rows}


def test_shares_of_the_updates_are_those_of_all_seeds(runs, pages):
    counted: dict[str, int] = {}
    for seed in (3, 5):
        for group, count in read(runs / f"tiny/seed-{seed}/result.json")[
            "updates_by_group"
        ].items():
            counted[group] = counted.get(group, 0) + count
    (figure,) = (f for f in pages["tiny"].figures if f["title"] == "Loss by group")
    for group, count in counted.items():
        assert f"{group}, {count / sum(counted.values()):.1%} of the updates" in figure["label"]


def test_numbers_as_text():
    assert [few(n) for n in (12, 12_345, 2.5e6)] == ["12", "12.3k", "2.5M"]
    assert seeds_text([3]) == "seed 3"
    assert seeds_text([0, 1]) == "seeds 0 and 1"
    assert seeds_text([0, 1, 3]) == "seeds 0, 1 and 3"
    assert seeds_text([2, 3, 4, 5]) == "seeds 2 to 5"
    assert number(-0.5) == "−0.50"
    assert number(math.nan) == "undefined"


def test_names_are_cut_in_the_middle():
    assert short("conv_3x3") == "conv_3x3"
    names = {short(f"a group with a long name, number {n}") for n in range(30)}
    assert len(names) == 30
    assert {len(name) for name in names} == {16}


def test_bands_of_complexity():
    def updates(sizes):
        return [TrainedUpdate(step=n, lr=0.1, parameters=p) for n, p in enumerate(sizes)]

    def ends(bands):
        return [(min(sizes), max(sizes)) for sizes in ([u.parameters for u in b] for b in bands)]

    bands = complexity_bands(updates([5] * 6 + [1, 2, 9, 7]))
    assert sum(map(len, bands)) == 10
    assert all(a[1] < b[0] for a, b in itertools.pairwise(ends(bands)))
    assert ends(complexity_bands(updates([5] * 6))) == [(5, 5)]
    assert [len(band) for band in complexity_bands(updates(range(100)))] == [20] * 5


def test_the_verdict_names_both_levels():
    arms = {"static": {"tau_by_loss": [0.5, 0.48]}, "dynamic": {"tau_by_loss": [0.4, 0.46]}}
    said = verdict(a_comparison([-0.1, -0.02], arms=arms))
    assert said.startswith("dynamic ranks 0.06 lower than static (0.43 against 0.49); the interval")


def test_what_to_do_next(pages, runs):
    page = pages["tiny"]
    results = [read(runs / f"tiny/seed-{s}/result.json") for s in (3, 5)]
    pick = min((result["pick"] | {"seed": result["seed"]} for result in results),
               key=lambda pick: pick["loss"])  # fmt: skip
    assert f"`nas-dynamic export tiny --seed {pick['seed']}`".strip("`") in page.words
    assert all(candidate in page.words for candidate in pick["architecture"].values())
    assert "NasBench201 · digits · 12 subnets scored · 2 seeds" in page.words
    assert str(runs) not in page.html


@pytest.mark.parametrize(
    ("last", "noise", "text"),
    [
        (0.5, 0.01, "fell by 50.0%, ±0.9%: it still falls."),
        (1.0, 0.01, "would change little"),
        (0.9, 1.0, "whether it still falls cannot be told"),
    ],
)
def test_a_loss_that_still_falls_at_the_end_is_told(last, noise, text, a_run, tmp_path):
    trace = [
        {
            "step": n,
            "lr": 0.1,
            "parameters": 1,
            "loss": (last if n >= 90 else 1.0) + noise * (-1) ** n,
        }
        for n in range(100)
    ]
    page = page_of([a_run("falling", [0.5, 0.6], trace=trace)], tmp_path)
    assert text in page.words

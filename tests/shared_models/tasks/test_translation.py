"""Translation: what is trained, held against hand-made numbers, and how a translated image is judged."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import median_filter
from torch import nn

from shared_models.errors import BadInput
from shared_models.tasks import CaseRecord, segmenter, task_of
from shared_models.tasks.bootstrap import replicate_weights
from shared_models.tasks.image_metrics import EXACT_DB, likeness, psnr, ssim

PAIRED = {"kind": "translation", "how": {"mode": "paired", "l1_weight": 10.0}}
NOISY = {"kind": "translation", "how": {"mode": "paired", "noise": 0.3}}
UNPAIRED = {"kind": "translation", "how": {"mode": "unpaired", "domains": ["old", "new"]}}
MASKED = {
    "kind": "translation",
    "how": {**UNPAIRED["how"], "mask": "mask", "mask_classes": ["background", "organ"], "segmenter_steps": 60},
}


def times(*factors: float) -> nn.Module:
    """Multiplies every channel by its factor and adds them up."""
    layer = nn.Conv2d(len(factors), 1, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(factors).view(1, -1, 1, 1))
    return layer


def network_of(**children: nn.Module) -> nn.Module:
    network = nn.Module()
    for name, child in children.items():
        network.add_module(name, child)
    return network


def cycle(ab: float = 2.0, ba: float = 0.25, a: float = 0.5, b: float = 0.75) -> nn.Module:
    return network_of(
        generator_ab=times(ab), generator_ba=times(ba), discriminator_a=times(a), discriminator_b=times(b)
    )


def cross_entropy(logits: np.ndarray, real: bool) -> float:
    probability = 1 / (1 + np.exp(-logits))
    return float(-np.log(probability if real else 1 - probability).mean())


def flat(*values: float) -> torch.Tensor:
    return torch.stack([torch.full((1, 4, 4), value) for value in values])


def sample(image: torch.Tensor, label: torch.Tensor, name: str = "c", **more: torch.Tensor) -> dict:
    return {"image": image, "label": label, "id": name, "patient": name, "spacing": (1.0, 1.0), **more}


def test_the_losses_of_pix2pix_are_those_of_the_paper(job_for):
    task = task_of(job_for(PAIRED))
    network = network_of(generator=times(1.5), discriminator=times(0.5, -1.0))
    source, target = torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    batch = {"image": source, "label": target}
    x, y = source.numpy().astype(float), target.numpy().astype(float)
    made, judged = 1.5 * x, 0.5 * x - 1.0 * (1.5 * x)
    expected = cross_entropy(judged, real=True) + 10.0 * np.abs(made - y).mean()
    assert list(task.players(network)) == ["generator", "discriminator"]
    assert float(task.step_loss(network, batch, "generator").detach()) == pytest.approx(expected, rel=1e-5)
    halved = (cross_entropy(0.5 * x - y, real=True) + cross_entropy(judged, real=False)) / 2
    assert float(task.step_loss(network, batch, "discriminator").detach()) == pytest.approx(halved, rel=1e-5)


@pytest.mark.parametrize(("section", "network"), [
    (PAIRED, lambda: network_of(generator=times(1.5), discriminator=times(0.5, -1.0))),
    (UNPAIRED, cycle),
])  # fmt: skip
def test_a_player_trains_its_own_parameters_and_no_others(job_for, section, network):
    task, network = task_of(job_for(section)), network()
    label = torch.randn(2, 1, 4, 4) if section is PAIRED else torch.tensor([0, 1])
    batch = {"image": torch.randn(2, 1, 4, 4), "label": label}
    players = task.players(network)
    assert sum(map(len, players.values())) == len(list(network.parameters()))
    for player, own in players.items():
        network.zero_grad(set_to_none=True)
        task.step_loss(network, batch, player).backward()
        assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in own)
        others = [parameter for name, parameters in players.items() if name != player for parameter in parameters]
        assert all(parameter.grad is None and parameter.requires_grad for parameter in others)


def test_noise_is_new_in_every_step_and_a_case_is_always_judged_with_its_own(job_for):
    task = task_of(job_for(NOISY))
    network = network_of(generator=times(1.0), discriminator=times(0.5, -1.0))
    target = torch.zeros(4, 1, 32, 32)
    sources = []
    for _ in range(2):
        batch = {"image": target, "label": target}
        task.step_loss(network, batch, "generator")
        sources.append(batch["source"])
        assert float(batch["source"].std()) == pytest.approx(0.3, rel=0.1)
    assert not torch.equal(*sources)
    one, again, other = (task.present(sample(target[0], target[0], name)) for name in ("one", "one", "other"))
    assert torch.equal(one["image"], again["image"]) and not torch.equal(one["image"], other["image"])
    assert float(one["image"].std()) == pytest.approx(0.3, rel=0.1)
    assert torch.equal(one["label"], target[0])
    plain = sample(target[0], target[0])
    assert task_of(job_for(PAIRED)).present(plain) is plain


def waves(number: int, seed: int) -> torch.Tensor:
    """Images (n, 1, 24, 24) of one kind: two waves across each other, of random phases, from 0 to 1."""
    phases = torch.rand(number, 1, 1, 2, generator=torch.Generator().manual_seed(seed)) * 2 * torch.pi
    at = 1.2 * torch.arange(24.0)
    return (torch.sin(at[:, None] + phases[..., :1]) * torch.sin(at[None, :] + phases[..., 1:]) + 1) / 2


def test_a_small_pix2pix_denoises_better_than_a_median_filter(job_for):
    job = job_for(NOISY, crop=(24, 24))
    task, images = task_of(job), waves(32, seed=0)
    torch.manual_seed(0)
    discriminator = nn.Sequential(nn.Conv2d(2, 8, 4, 2), nn.LeakyReLU(0.2), nn.Conv2d(8, 1, 4, 2))
    layers = [nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=2, dilation=2), nn.ReLU()]
    generator = nn.Sequential(*layers, nn.Conv2d(16, 1, 5, padding=2))
    network = network_of(generator=generator, discriminator=discriminator)
    optimizers = {player: torch.optim.Adam(own, 0.01, (0.5, 0.999)) for player, own in task.players(network).items()}
    for step in range(60):
        batch = {"image": images[step % 4 :: 4], "label": images[step % 4 :: 4]}
        for player, optimizer in optimizers.items():
            optimizer.zero_grad()
            task.step_loss(network, batch, player).backward()
            optimizer.step()
    records = []
    for number, image in enumerate(waves(4, seed=1)):
        shown = task.present(sample(image, image, f"c{number}"))
        records.append(task.judge(task.infer(network, shown["image"][None], job)[0], shown))
    values = {name: float(value[0]) for name, value in task.metrics(task.sums(records, np.ones((1, 4)))).items()}
    assert values["psnr_source"] == pytest.approx(20 * np.log10(1 / 0.3), abs=0.7)
    assert values["psnr"] > max(values["psnr_median"], values["psnr_source"]) + 3
    assert values["ssim"] > max(values["ssim_median"], values["ssim_source"]) + 0.2
    assert values["l1"] < min(values["l1_median"], values["l1_source"]) / 1.5


def test_the_median_filter_and_the_source_are_judged_as_they_were_seen(job_for):
    task, target = task_of(job_for(NOISY)), waves(1, seed=2)[0]
    shown = task.present(sample(target, target))
    record = task.judge(target, shown)
    filtered = torch.from_numpy(median_filter(shown["image"][0].numpy(), size=3))[None]
    for name, image in (("", target), ("_source", shown["image"]), ("_median", filtered)):
        assert {m: record.values[f"{m}{name}"][0] for m in ("psnr", "ssim", "l1")} == likeness(image, target)
    assert set(task_of(job_for(PAIRED)).metric_info()) == {
        f"{measure}{name}" for measure in ("psnr", "ssim", "l1") for name in ("", "_source")
    }


def test_psnr_by_hand():
    target = torch.tensor([[[0.0, 4.0], [2.0, 2.0]]])
    off = target + torch.tensor([[[1.0, -1.0], [1.0, 1.0]]])  # mean squared error 1, data range 4
    assert psnr(off, target, 4.0) == pytest.approx(20 * np.log10(4))
    assert likeness(off, target)["psnr"] == pytest.approx(20 * np.log10(4))
    assert likeness(off, target)["l1"] == 1
    assert likeness(target, target)["psnr"] == EXACT_DB
    assert likeness(off, torch.ones(1, 2, 2)) == {"psnr": None, "ssim": None, "l1": pytest.approx(1.5)}


def test_ssim_of_one_window_by_hand_and_of_many_as_monai_has_it():
    from monai.metrics import SSIMMetric

    rng = np.random.default_rng(0)
    x, y = rng.random((2, 11, 11))
    bell = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    weights = np.outer(bell, bell) / bell.sum() ** 2
    (mx, my), span = ((weights * image).sum() for image in (x, y)), 2.0
    vx, vy = ((weights * (image - mean) ** 2).sum() for image, mean in ((x, mx), (y, my)))
    covariance = (weights * (x - mx) * (y - my)).sum()
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    expected = (2 * mx * my + c1) * (2 * covariance + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    images = [torch.from_numpy(image[None]).float() for image in (x, y)]
    assert ssim(*images, span) == pytest.approx(expected, abs=1e-5)
    volumes = torch.rand(2, 1, 1, 13, 12, 14)
    theirs = SSIMMetric(3, data_range=1.0)(volumes[0], volumes[1])
    assert ssim(volumes[0, 0], volumes[1, 0], 1.0) == pytest.approx(float(theirs), abs=1e-5)
    narrow = torch.rand(2, 1, 8, 30)
    assert ssim(narrow[0], narrow[0], 1.0) == pytest.approx(1, abs=1e-6)


def test_images_of_any_size_are_translated(job_for):
    job = job_for(PAIRED, crop=(8, 8))
    network = network_of(generator=times(2.0), discriminator=times(1.0, 1.0)).train()
    for size in ((5, 8), (8, 8), (13, 20)):
        images = torch.randn(1, 1, *size)
        assert torch.allclose(task_of(job).infer(network, images, job), 2 * images, atol=1e-5)
        assert not network.training


def test_what_does_not_fit_its_target_is_refused(job_for):
    task = task_of(job_for(PAIRED))
    with pytest.raises(BadInput, match=r"Case c: the network's output has shape \(1, 4, 5\), expected \(1, 4, 4\)"):
        task.judge(torch.zeros(1, 4, 5), sample(flat(1)[0], flat(1)[0]))
    with pytest.raises(BadInput, match="not finite"):
        task.judge(torch.full((1, 4, 4), torch.nan), sample(flat(1)[0], flat(1)[0]))


def test_the_losses_of_cyclegan_are_those_of_the_paper(job_for):
    task = task_of(job_for(UNPAIRED))
    network, batch = cycle(), {"image": flat(1.0, 3.0), "label": torch.tensor([0, 1])}
    # a = 1: as b 2, back 0.5, b's discriminator 1.5, itself as a 0.25; b = 3: as a 0.75, back 1.5, a's 0.375, as b 6.
    ab = (1.5 - 1) ** 2 + 10 * 0.5 + 5 * 0.75
    ba = (0.375 - 1) ** 2 + 10 * 1.5 + 5 * 3.0
    assert float(task.step_loss(network, batch, "generators").detach()) == pytest.approx(ab + ba)
    a = ((0.5 - 1) ** 2 + 0.375**2) / 2
    b = ((2.25 - 1) ** 2 + 1.5**2) / 2
    assert float(task.step_loss(network, batch, "discriminators").detach()) == pytest.approx(a + b)


def test_a_batch_of_one_domain_trains_what_it_can_and_parts_add_up(job_for):
    task, network = task_of(job_for(UNPAIRED)), cycle()
    only = {"image": flat(1.0, 1.0), "label": torch.tensor([0, 0])}
    ab = (1.5 - 1) ** 2 + 10 * 0.5 + 5 * 0.75
    assert float(task.step_loss(network, only, "generators").detach()) == pytest.approx(2 * ab)
    assert float(task.step_loss(network, only, "discriminators").detach()) == pytest.approx((0.5 - 1) ** 2 + 1.5**2)
    images, label = torch.randn(6, 1, 4, 4), torch.tensor([0, 0, 0, 0, 1, 1])
    whole = {"image": images, "label": label}
    parts = [{"image": images[at : at + 3], "label": label[at : at + 3]} for at in (0, 3)]
    for player in task.players(network):
        halves = [float(task.step_loss(network, part, player).detach()) / 2 for part in parts]
        assert float(task.step_loss(network, whole, player).detach()) == pytest.approx(sum(halves), rel=1e-5)


def organs(number: int, sign: float, seed: int) -> list[dict]:
    """Images 16 x 16 of a bright square in noise, or of a dark one; the first domain is the dark one."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for index in range(number):
        mask = torch.zeros(1, 16, 16, dtype=torch.uint8)
        top, left = torch.randint(2, 8, (2,), generator=generator).tolist()
        mask[:, top : top + 6, left : left + 6] = 1
        image = sign * mask + 0.1 * torch.randn(1, 16, 16, generator=generator)
        found.append(sample(image, torch.tensor(int(sign > 0)), f"{seed}-{index}", mask=mask))
    return found


def test_a_segmenter_of_the_second_domain_says_what_translation_is_worth(job_for, monkeypatch):
    monkeypatch.setattr(segmenter, "_trained", {})
    job = job_for(MASKED, crop=(16, 16))
    task, training = task_of(job), [*organs(6, 1.0, seed=0), *organs(6, -1.0, seed=1)]
    judged = task.ready(cycle(ab=-1.0, ba=-0.5), training, job, seed=5)
    records = [
        task.judge(task.infer(judged, case["image"][None], job)[0], case)
        for case in (*organs(3, -1.0, seed=2), *organs(2, 1.0, seed=3))
    ]
    for record in records[:3]:
        values = {name: value[0] for name, value in record.values.items()}
        assert values["dice_after"] > 0.8 > 0.5 > values["dice_before"]
        assert values["dice_second"] is None
        assert 0 < values["cycle_psnr"] < EXACT_DB  # there and back halves the image
    for record in records[3:]:
        assert record.values["dice_second"][0] > 0.8
        assert all(record.values[name] == [None] for name in record.values if name != "dice_second")
    sums = task.sums(records, np.ones((1, 5)))
    assert task.counts(sums) == {
        "cycle_psnr": 3, "cycle_ssim": 3, "dice_after": 3, "dice_before": 3, "dice_second": 2
    }  # fmt: skip


def test_the_segmenter_is_the_same_whenever_it_is_made_and_made_once(job_for, monkeypatch):
    job, training = job_for(MASKED, crop=(16, 16)), organs(3, 1.0, seed=0)
    task, states = task_of(job), []
    for _ in range(2):
        monkeypatch.setattr(segmenter, "_trained", {})
        torch.manual_seed(len(states))
        ready = task.ready(cycle(), training, job, seed=5)
        assert task.ready(cycle(), training, job, seed=5).segmenter is ready.segmenter
        states.append(ready.segmenter.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    training[0]["mask"] = 1 - training[0]["mask"]
    assert task.ready(cycle(), training, job, seed=5).segmenter is not ready.segmenter


def test_a_site_without_the_second_domain_has_no_segmenter(job_for):
    job = job_for(MASKED, crop=(16, 16))
    task, cases = task_of(job), organs(2, -1.0, seed=0)
    network = cycle()
    assert task.ready(network, cases, job, seed=5) is network
    record = task.judge(task.infer(network, cases[0]["image"][None], job)[0], cases[0])
    assert record.values["dice_after"] == record.values["dice_before"] == [None]
    assert record.values["cycle_psnr"][0] is not None
    assert list(task_of(job_for(UNPAIRED)).metric_info()) == ["cycle_psnr", "cycle_ssim"]


@pytest.mark.parametrize("section", [PAIRED, NOISY, UNPAIRED, MASKED])
def test_the_sums_of_two_sites_are_those_of_both_together(job_for, section):
    job = job_for(section)
    task, rng = task_of(job), np.random.default_rng(0)
    records = [
        CaseRecord(f"c{n}", f"p{n}", {m: [None if rng.random() < 0.3 else rng.random()] for m in task.metric_info()})
        for n in range(9)
    ]
    weights = replicate_weights([record.patient for record in records], 4, 7)
    one, two = task.sums(records[:4], weights[:, :4]), task.sums(records[4:], weights[:, 4:])
    both = task.sums(records, weights)
    assert all(np.array_equal(one[name] + two[name], both[name]) for name in both)
    metrics, info = task.metrics(both), task.metric_info()
    assert set(metrics) == set(info) == set(task.counts(both))
    assert next(iter(info)) == job.selection_metric() and info[job.selection_metric()]["larger_is_better"]
    first = [record.values[job.selection_metric()][0] for record in records]
    first = [value for value in first if value is not None]
    assert metrics[job.selection_metric()][0] == pytest.approx(np.mean(first), abs=1e-6)
    assert task.counts(both)[job.selection_metric()] == len(first)
    empty = task.metrics(task.sums([], np.ones((2, 0))))
    assert all(values.shape == (2,) and np.isnan(values).all() for values in empty.values())

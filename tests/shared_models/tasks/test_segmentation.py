import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from shared_models.errors import BadInput
from shared_models.job_tasks import SegmentationTask
from shared_models.tasks import CaseRecord
from shared_models.tasks.bootstrap import interval, pooled, replicate_weights
from shared_models.tasks.segmentation import MARGIN, Segmentation

CLASSES = ["background", "liver", "spleen"]
SECTION = SegmentationTask(kind="segmentation", classes=CLASSES)
TASK = Segmentation(SECTION)


def judged(predicted, label, spacing=None, case="c1", patient="p1"):
    predicted, label = torch.as_tensor(predicted), torch.as_tensor(label)
    probabilities = torch.moveaxis(nn.functional.one_hot(predicted.long(), 3), -1, 0).float()
    sample = {
        "label": label[None].to(torch.uint8),
        "id": case,
        "patient": patient,
        "spacing": spacing or (1.0,) * label.ndim,
    }
    return TASK.judge(probabilities, sample)


def square(value, size=20, start=5, stop=12):
    mask = np.zeros((size, size), dtype=np.uint8)
    mask[start:stop, start:stop] = value
    return mask


def metrics_of(records, replicates=0):
    weights = replicate_weights([record.patient for record in records], replicates, seed=0)
    sums = TASK.sums(records, weights)
    return TASK.metrics(sums), TASK.counts(sums)


def test_loss_is_near_zero_only_for_the_right_answer():
    label = torch.from_numpy(square(1) + square(2, start=14, stop=18))[None, None]
    right = 20.0 * torch.moveaxis(nn.functional.one_hot(label[:, 0].long(), 3), -1, 1).float()
    assert TASK.loss(right, label).item() == pytest.approx(0.0, abs=1e-3)
    wrong = right.roll(1, dims=1).requires_grad_()
    loss = TASK.loss(wrong, label)
    assert loss.item() > 5
    loss.backward()
    assert wrong.grad.abs().sum() > 0
    assert TASK.loss(right.bfloat16(), label).dtype == torch.float32


def test_loss_is_cross_entropy_plus_dice_of_the_organs():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 6, 6, generator=generator)
    label = torch.randint(3, (2, 1, 6, 6), generator=generator)
    probabilities = logits.softmax(dim=1)[:, 1:]
    truth = torch.stack([label[:, 0] == k for k in (1, 2)], dim=1).float()
    overlap, size = (probabilities * truth).sum((2, 3)), (probabilities + truth).sum((2, 3))
    expected = nn.functional.cross_entropy(logits, label[:, 0]) + (1 - 2 * overlap / size).mean()
    torch.testing.assert_close(TASK.loss(logits, label), expected, rtol=1e-4, atol=1e-4)


def test_deeper_outputs_count_half_as_much_as_the_one_before_at_their_own_size():
    label = torch.from_numpy(square(1, size=8, start=1, stop=5) + square(2, size=8, start=6, stop=8))[None, None]
    generator = torch.Generator().manual_seed(0)
    outputs = [torch.randn(1, 3, size, size, generator=generator) for size in (8, 4, 2)]
    # The nearest voxel of a label at half the size is every second one.
    terms = [TASK.loss(logits, label[..., ::step, ::step]) for logits, step in zip(outputs, (1, 2, 4), strict=True)]
    expected = (terms[0] + terms[1] / 2 + terms[2] / 4) / (1 + 1 / 2 + 1 / 4)
    torch.testing.assert_close(TASK.loss(outputs, label), expected)
    assert TASK.loss(outputs[:1], label) == terms[0]


def outputs_and_label(cases=4, size=8):
    """A deeply supervised network's logits (they ask for gradients), and masks with both organs."""
    generator = torch.Generator().manual_seed(0)
    outputs = [torch.randn(cases, 3, side, side, generator=generator).requires_grad_() for side in (size, size // 2)]
    return outputs, torch.randint(3, (cases, 1, size, size), generator=generator)


def test_cases_that_annotate_all_have_the_ordinary_loss_bit_for_bit():
    outputs, label = outputs_and_label()
    found = []
    for annotated in (None, torch.ones(4, 3, dtype=torch.bool)):
        loss = TASK.loss(outputs, label, annotated)
        found.append([loss, *torch.autograd.grad(loss, outputs)])
    assert all(torch.equal(plain, marginal) for plain, marginal in zip(*found, strict=True))


def test_an_organ_that_is_not_annotated_may_be_anywhere_in_the_background():
    label = torch.from_numpy(square(2))[None, None]  # a spleen; where the liver is, nobody drew
    background, liver, spleen = torch.eye(3)[:, None, :, None, None] * 20.0
    mine = label == 2
    nothing_else = torch.where(mine, spleen, background)
    liver_beside = torch.where(mine, spleen, liver)
    only_spleen = torch.tensor([[True, False, True]])
    for logits in (nothing_else, liver_beside):
        assert TASK.loss(logits, label, only_spleen).item() == pytest.approx(0.0, abs=1e-3)
    assert TASK.loss(liver_beside, label).item() > 5, "the ordinary loss forbids it"
    spleen_missed = torch.where(mine, liver, background)
    assert TASK.loss(spleen_missed, label, only_spleen).item() > 2


def test_cases_of_a_batch_may_annotate_different_organs():
    outputs, label = outputs_and_label()
    annotated = torch.tensor([[True, True, True], [True, False, True], [True, True, False], [True, False, True]])
    label = torch.where(annotated[torch.arange(4)[:, None, None, None], label], label, 0)
    together = TASK.loss(outputs, label, annotated)
    one_by_one = [
        TASK.loss([logits[case : case + 1] for logits in outputs], label[case : case + 1], annotated[case : case + 1])
        for case in range(4)
    ]
    torch.testing.assert_close(together, torch.stack(one_by_one).mean())
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(together, outputs))


def test_an_organ_that_is_not_annotated_is_neither_missed_nor_false():
    predicted, label = square(1) + square(2, start=14, stop=18), square(2, start=14, stop=18)
    probabilities = torch.moveaxis(nn.functional.one_hot(torch.as_tensor(predicted).long(), 3), -1, 0).float()
    sample = {"label": torch.as_tensor(label)[None], "id": "c1", "patient": "p1", "spacing": (1.0, 1.0)}
    half = TASK.judge(probabilities, sample | {"annotated": torch.tensor([True, False, True])})
    by_organ = ("dice", "surface_dice", "hd95", "missed", "false")
    assert {name: half.values[name][0] for name in by_organ} == dict.fromkeys(by_organ)
    assert half.values["dice"][1] == 1.0
    whole = judged(predicted, predicted, case="c2", patient="p2")
    metrics, counts = metrics_of([half, whole])
    assert metrics["false"][0] == metrics["missed"][0] == 0 and metrics["dice/liver"][0] == 1.0
    assert (counts["dice/liver"], counts["dice/spleen"]) == (1, 2)


@pytest.mark.parametrize("size", [(8, 8), (5, 8), (5, 7), (20, 13), (20, 5)])
def test_every_size_of_image_gets_probabilities_at_its_own_voxels(job_for, size):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))  # one voxel in, one voxel out: windows cannot matter
    before = [buffer.clone() for buffer in network.buffers()]
    images = torch.randn(2, 2, *size)
    probabilities = TASK.infer(network, images, job_for(SECTION.model_dump()))
    assert probabilities.shape == (2, 3, *size) and not probabilities.requires_grad
    torch.testing.assert_close(probabilities, torch.softmax(network(images), dim=1))
    assert all(torch.equal(a, b) for a, b in zip(before, network.buffers(), strict=True)), "running statistics stay"


def test_network_sees_patches_of_the_crop_only(job_for):
    seen = []

    class Spy(nn.Module):
        def forward(self, images):
            seen.append(tuple(images.shape[2:]))
            return images.repeat(1, 3, 1, 1, 1)

    for size in [(30, 9, 16), (10, 9, 16)]:
        TASK.infer(Spy(), torch.randn(1, 1, *size), job_for(SECTION.model_dump(), crop=(16, 16, 16)))
    assert set(seen) == {(16, 16, 16)}


class WhereItIs(nn.Module):
    """Logits that grow along every axis: what a network without symmetry makes of an image."""

    def forward(self, images):
        ramp = sum(torch.meshgrid(*(torch.arange(float(size)) for size in images.shape[2:]), indexing="ij"))
        return torch.stack([images[:, 0], images[:, 0] * ramp, ramp.expand_as(images[:, 0])], dim=1)


@pytest.mark.parametrize("size", [(8, 8), (8, 8, 8)])
def test_flips_are_averaged_over_every_choice_of_axes(job_for, size):
    section = SECTION.model_copy(update={"test_flips": True})
    images = torch.rand(2, 1, *size)
    flips = [(), *((axis,) for axis in range(2, images.ndim))]
    flips += [(2, 3)] if images.ndim == 4 else [(2, 3), (2, 4), (3, 4), (2, 3, 4)]
    expected = torch.stack([torch.softmax(WhereItIs()(images.flip(flip)), dim=1).flip(flip) for flip in flips]).mean(0)
    probabilities = Segmentation(section).infer(WhereItIs(), images, job_for(section.model_dump(), crop=size))
    torch.testing.assert_close(probabilities, expected)
    mirrored = Segmentation(section).infer(WhereItIs(), images.flip(2), job_for(section.model_dump(), crop=size))
    torch.testing.assert_close(mirrored.flip(2), probabilities)


@pytest.mark.parametrize(("overlap", "windows"), [(0.0, 3 * 1), (0.5, 5 * 1), (0.75, 9 * 1)])
def test_windows_overlap_by_the_share_that_the_job_says(job_for, overlap, windows):
    section = SECTION.model_copy(update={"overlap": overlap})
    seen = []

    class Spy(nn.Module):
        def forward(self, images):
            seen.extend(images)
            return images.repeat(1, 3, 1, 1)

    Segmentation(section).infer(Spy(), torch.randn(1, 1, 24, 8), job_for(section.model_dump()))
    assert len(seen) == windows


def test_real_organ_is_judged_as_monai_judges_it(shared_data):
    import nibabel
    from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice
    from scipy.ndimage import binary_dilation

    path = shared_data / "hippocampus" / "labelsTr" / "hippocampus_001.nii.gz"
    label = np.asarray(nibabel.load(path).dataobj).astype(np.uint8)
    predicted = np.roll(label, 2, axis=0)
    predicted[binary_dilation(label == 2) & (predicted == 0)] = 2
    predicted[-1, -1, -1] = 1  # on the image's border, far away
    spacing = (0.7, 1.0, 2.5)
    values = judged(predicted, label, spacing).values

    def one_hot(mask):
        return torch.stack([torch.from_numpy(mask == k) for k in range(3)])[None]

    pair = one_hot(predicted), one_hot(label)
    hd95 = compute_hausdorff_distance(*pair, percentile=95, spacing=spacing)[0]
    surface = compute_surface_dice(*pair, class_thresholds=[1.0, 1.0], spacing=spacing)[0]
    assert values["dice"] == pytest.approx(compute_dice(*pair, include_background=False)[0].tolist())
    assert values["hd95"] == pytest.approx(hd95.tolist(), rel=1e-5)
    assert values["surface_dice"] == pytest.approx(surface.tolist(), rel=1e-5)


def test_perfect_prediction():
    label = square(1) + square(2, start=14, stop=18)
    sure_and_right = [0.0] * 14 + [1.0]
    assert judged(label, label).values == {
        "dice": [1, 1], "surface_dice": [1, 1], "hd95": [0, 0], "missed": [0, 0], "false": [0, 0],
        "calibration": sure_and_right * 3, "squared_error": [0],
    }  # fmt: skip


def test_missed_organ_costs_and_is_never_nan():
    good = judged(square(1), square(1), case="good", patient="p1")
    miss = judged(square(0), square(1), spacing=(3.0, 4.0), case="miss", patient="p2")
    diagonal = math.hypot(20 * 3, 20 * 4)
    assert miss.values.items() >= {
        "dice": [0, None], "surface_dice": [0, None], "hd95": [diagonal, None], "missed": [1, 0], "false": [0, 0],
    }.items()  # fmt: skip
    metrics, counts = metrics_of([good, miss])
    assert metrics["dice"][0] == metrics["dice/liver"][0] == 0.5
    assert metrics["surface_dice"][0] == 0.5
    assert metrics["hd95"][0] == pytest.approx(diagonal / 2)
    assert metrics["missed"][0] == 1 and metrics["false"][0] == 0
    assert counts["dice/liver"] == counts["hd95/liver"] == 2


def test_false_organ_lowers_dice_and_is_left_out_of_distances():
    false = judged(square(1) + square(2, start=14, stop=18), square(1))
    assert false.values["dice"] == [1, 0] and false.values["hd95"] == [0, None]
    metrics, counts = metrics_of([false])
    assert metrics["dice"][0] == 0.5 and metrics["false"][0] == 1
    assert metrics["hd95"][0] == 0 and counts["hd95/spleen"] == 0 and counts["dice/spleen"] == 1


def test_class_that_no_case_has_is_undefined_alone():
    metrics, counts = metrics_of([judged(square(1), square(1, stop=10)), judged(square(1), square(1))], replicates=20)
    for name in ("dice", "surface_dice", "hd95"):
        assert np.isnan(metrics[f"{name}/spleen"]).all() and counts[f"{name}/spleen"] == 0
        assert np.array_equal(metrics[name], metrics[f"{name}/liver"]) and counts[name] == 2
    assert interval(metrics["dice/spleen"]).value is None


def test_an_organ_that_one_case_has_gives_no_interval_to_the_mean_over_organs():
    both = square(1) + square(2, start=14, stop=18)
    records = [judged(square(1), square(1, stop=8 + number % 3), patient=f"p{number}") for number in range(9)]
    metrics, _ = metrics_of([judged(both, both, patient="p9"), *records], replicates=100)
    assert interval(metrics["dice/liver"], 10).low is not None
    found = interval(metrics["dice"], 10)
    assert found.value is not None and found.low is None and "too few cases of a class" in found.why


def test_case_without_any_organ_counts_as_nothing():
    metrics, counts = metrics_of([judged(square(0), square(0))])
    assert np.isnan(metrics["dice"]).all() and counts["dice"] == 0
    assert metrics["missed"][0] == metrics["false"][0] == 0


def uncertain(label, seed=0, **sample):
    """Random probabilities (3, *spatial), and a case with this label."""
    logits = 2 * torch.randn(3, *label.shape, generator=torch.Generator().manual_seed(seed))
    case = {"label": torch.as_tensor(label)[None], "id": "c1", "patient": "p1", "spacing": (1.0,) * label.ndim}
    return torch.softmax(logits, dim=0), case | sample


def calibration_of(voxels):
    """What `judge` should say of voxels [(probabilities by class, true class)], written out."""
    bins, squared_error = np.zeros((3, 15)), 0.0
    for probabilities, truth in voxels:
        largest = max(probabilities)
        [place] = [b for b in range(15) if b < round(15 * largest, 5) <= b + 1]
        bins[:, place] += 1, largest, probabilities.index(largest) == truth
        squared_error += sum((p - (k == truth)) ** 2 for k, p in enumerate(probabilities)) / len(probabilities)
    return bins / len(voxels), squared_error / len(voxels)


def near_the_organs(probabilities, label):
    inside = np.argwhere(label > 0)
    low, high = inside.min(axis=0) - MARGIN, inside.max(axis=0) + MARGIN
    places = [place for place in np.ndindex(*label.shape) if (low <= place).all() and (place <= high).all()]
    return [(probabilities[(slice(None), *place)].tolist(), int(label[place])) for place in places]


@pytest.mark.parametrize("shape", [(20, 20), (9, 20, 12)])
def test_calibration_is_of_the_voxels_in_and_around_the_organs(shape):
    label = np.zeros(shape, dtype=np.uint8)
    label[2:5, 8:12], label[1, 9] = 1, 2  # near one border of the image and far from the other
    probabilities, sample = uncertain(label)
    probabilities[:, 3, 9] = torch.tensor([0.3, 0.1, 0.6]).reshape(3, *[1] * (label.ndim - 2))  # the edge of a bin
    values = TASK.judge(probabilities, sample).values
    voxels = near_the_organs(probabilities, label)
    assert len(voxels) < 0.8 * label.size
    bins, squared_error = calibration_of(voxels)
    assert np.array(values["calibration"]).reshape(3, 15) == pytest.approx(bins, abs=1e-6)
    assert values["squared_error"] == [pytest.approx(squared_error, abs=1e-6)]
    found, counts = metrics_of([TASK.judge(probabilities, sample)])
    assert found["calibration_error"][0] == pytest.approx(np.abs(bins[1] - bins[2]).sum(), abs=1e-5)
    assert found["brier"][0] == pytest.approx(squared_error, abs=1e-6)
    assert counts["calibration_error"] == counts["brier"] == 1


def test_organs_that_are_not_annotated_are_background_to_calibration():
    label = square(2)
    probabilities, sample = uncertain(label)
    values = TASK.judge(probabilities, sample | {"annotated": torch.tensor([True, False, True])}).values
    merged = torch.stack([probabilities[0] + probabilities[1], probabilities[2]])
    voxels = near_the_organs(merged, label // 2)
    _, squared_error = calibration_of(voxels)
    assert values["squared_error"] == [pytest.approx(squared_error, abs=1e-6)]
    said = probabilities.argmax(dim=0) == 2
    confidence, correct = torch.where(said, merged[1], merged[0]), said == torch.as_tensor(label == 2)
    box = slice(5 - MARGIN, 12 + MARGIN)
    _, mean_confidence, mean_correct = np.array(values["calibration"]).reshape(3, 15).sum(axis=1)
    assert mean_confidence == pytest.approx(float(confidence[box, box].mean()), abs=1e-6)
    assert mean_correct == pytest.approx(float(correct[box, box].float().mean()), abs=1e-6)
    everything = TASK.judge(probabilities, sample | {"annotated": torch.tensor([True, True, True])})
    assert everything == TASK.judge(probabilities, sample)


def test_a_false_organ_far_away_does_not_better_the_calibration():
    label = square(1, size=60)
    probabilities, sample = uncertain(label)
    before = TASK.judge(probabilities, sample).values
    probabilities[:, -1, -1] = torch.tensor([0.0, 0.0, 1.0])
    after = TASK.judge(probabilities, sample).values
    assert after["false"] == [0, 1] and after["calibration"] == before["calibration"]


def test_a_case_without_an_organ_has_no_calibration():
    probabilities, sample = uncertain(square(0))
    nothing = TASK.judge(probabilities, sample)
    metrics, counts = metrics_of([nothing])
    assert np.isnan(metrics["calibration_error"][0]) and np.isnan(metrics["brier"][0]) and counts["brier"] == 0
    assert TASK.curves(TASK.sums([nothing], np.ones((1, 1)))) == {
        "reliability": {"confidence": [], "observed": [], "n": []}
    }
    some = TASK.judge(*uncertain(square(1)))
    (alone, _), (both, counts) = metrics_of([some]), metrics_of([some, nothing])
    assert both["calibration_error"][0] == alone["calibration_error"][0] and both["brier"][0] == alone["brier"][0]
    assert counts["calibration_error"] == 1 and counts["missed"] == 2


def test_a_large_organ_counts_no_more_to_calibration_than_a_small_one():
    small, large = (TASK.judge(*uncertain(square(1, size=size, stop=size - 5), size)) for size in (14, 80))
    sums = TASK.sums([small, large], np.ones((1, 2)))
    assert sums["calibration"][0, 0].sum() == pytest.approx(2, abs=1e-5)
    assert sum(TASK.curves(sums)["reliability"]["n"]) == pytest.approx(2, abs=1e-5)
    of_both = [record.values["squared_error"][0] for record in (small, large)]
    assert TASK.metrics(sums)["brier"][0] == pytest.approx(np.mean(of_both), abs=1e-6)


def test_images_of_one_patient_are_drawn_together():
    cases = [TASK.judge(*uncertain(square(1), seed, patient=f"p{seed // 2}")) for seed in range(6)]
    weights = replicate_weights([record.patient for record in cases], 20, seed=0)
    sums = TASK.sums(cases, weights)
    assert np.array_equal(sums["calibrated"], weights.sum(axis=1))
    squared_error = np.array([record.values["squared_error"][0] for record in cases])
    assert TASK.metrics(sums)["brier"] == pytest.approx(weights @ squared_error / 6, abs=1e-6)


def test_a_record_of_an_older_version_has_no_calibration():
    new = TASK.judge(*uncertain(square(1)))
    old = CaseRecord(
        "old", "p2", {name: new.values[name] for name in ("dice", "surface_dice", "hd95", "missed", "false")}
    )
    metrics, counts = metrics_of([new, old])
    assert counts["brier"] == 1 and metrics["brier"][0] == metrics_of([new])[0]["brier"][0]


def test_site_without_cases_adds_nothing():
    weights = replicate_weights(["p"], 5, seed=0)
    some = TASK.sums([judged(square(1), square(1))], weights)
    none = TASK.sums([], replicate_weights([], 5, seed=0))
    together = pooled([none, some])
    assert all(np.array_equal(together[name], some[name]) for name in some)


def test_diverged_network_and_wrong_shape_are_named():
    sample = {"label": torch.zeros(1, 4, 4), "id": "c7", "patient": "p", "spacing": (1.0, 1.0)}
    with pytest.raises(BadInput, match=r"c7.*not finite"):
        TASK.judge(torch.full((3, 4, 4), torch.nan), sample)
    with pytest.raises(BadInput, match=r"c7.*\(3, 5, 4\), expected \(3, 4, 4\)"):
        TASK.judge(torch.zeros(3, 5, 4), sample)


def test_record_survives_a_json_file():
    record = judged(square(1), square(0))
    assert CaseRecord.from_json(json.loads(json.dumps(record.to_json(), allow_nan=False))) == record
    with pytest.raises(BadInput, match="case record"):
        CaseRecord.from_json({"case": "c"})


BELIEVED = [
    {name: TASK.judge(*uncertain(square(1, stop=stop))).values[name] for name in ("calibration", "squared_error")}
    for stop in (8, 12)
]


@st.composite
def records(draw):
    share = st.none() | st.floats(0, 1)
    number = draw(st.integers(0, 12))
    return [
        CaseRecord(
            f"c{i}",
            f"p{draw(st.integers(0, 4))}",
            {
                "dice": draw(st.lists(share, min_size=2, max_size=2)),
                "surface_dice": draw(st.lists(share, min_size=2, max_size=2)),
                "hd95": draw(st.lists(st.none() | st.floats(0, 500), min_size=2, max_size=2)),
                "missed": draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=2)),
                "false": draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=2)),
                **draw(st.sampled_from([{"calibration": [], "squared_error": []}, *BELIEVED])),
            },
        )
        for i in range(number)
    ]


@settings(max_examples=40, deadline=None)
@given(records(), st.integers(1, 4), st.randoms(use_true_random=False))
def test_pooled_sums_are_the_sums_of_all_cases_bit_for_bit(cases, sites, random):
    site_of = {record.patient: random.randrange(sites) for record in cases}
    by_site = [[r for r in cases if site_of[r.patient] == site] for site in range(sites)]
    sums = [TASK.sums(own, np.ones((1, len(own)))) for own in by_site]
    everything = TASK.sums(cases, np.ones((1, len(cases))))
    random.shuffle(sums)
    together = pooled(sums)
    assert set(together) == set(everything)
    assert all(np.array_equal(together[name], everything[name]) for name in everything)

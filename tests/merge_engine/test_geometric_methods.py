"""Methods that follow from lengths, angles and singular values: golden values in fp64, and properties."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from merge_engine import geometry
from merge_engine.geometry import Along, Geometry, held, of_elements
from merge_engine.importance import importance
from merge_engine.methods.arcee_fusion import arcee_fusion
from merge_engine.methods.combination import combination
from merge_engine.methods.iso_c import isotropic
from merge_engine.methods.karcher import karcher_coefficients
from merge_engine.methods.matrices import polar
from merge_engine.methods.model_stock import stock_shares
from merge_engine.methods.multislerp import multislerp_coefficients
from merge_engine.methods.nearswap import nearswap
from merge_engine.methods.nuslerp import arc, nuslerp, share_of_second
from merge_engine.methods.tsv_merge import merged_singular_vectors
from merge_engine.order_statistics import quantiles

FIRST = torch.tensor(0, dtype=torch.int32)
F32, F64 = torch.float32, torch.float64
ALONG: tuple[Along, ...] = ("whole", "last", "first")
SHAPE = (7, 5, 6)


def tensors(count: int, shape: tuple[int, ...] = SHAPE, seed: int = 0, common: float = 0.7) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(shape, generator=generator)
    return [common * shared + torch.randn(shape, generator=generator) for _ in range(count)]


def geometry_of(sources: Sequence[Tensor], base: Tensor | None = None) -> Geometry:
    flat = [source.flatten() for source in sources]
    base_N = None if base is None else base.flatten()
    return Geometry(flat, base_N, tuple(sources[0].shape), sources[0].dtype)


def vectors(tensor: Tensor, along: Along) -> Tensor:
    """Shape (L, length), float64."""
    if along == "whole":
        return tensor.double().reshape(1, -1)
    if along == "last":
        return tensor.double().reshape(-1, tensor.shape[-1])
    return tensor.double().reshape(tensor.shape[0], -1).T


def merged(sources: Sequence[Tensor], coefficients: Sequence[float]) -> Tensor:
    return combination(sources, None, FIRST, F32, [torch.tensor(c, dtype=F32) for c in coefficients])


class TestGeometry:
    @pytest.mark.parametrize("along", ALONG)
    @pytest.mark.parametrize("based", [True, False])
    def test_cosines_are_those_of_the_vectors(self, along: Along, based: bool) -> None:
        base, *sources = tensors(4)
        made = geometry_of(sources, base if based else None)
        parts = [vectors(source - base if based else source, along) for source in sources]
        cosines = [torch.cosine_similarity(a, b) for a, b in itertools.combinations(parts, 2)]
        torch.testing.assert_close(made.mean_cosine(along), sum(cosines) / 3, rtol=1e-5, atol=1e-6)
        pair = geometry_of(sources[:2], base if based else None).cosine(along, 1e-7)
        torch.testing.assert_close(pair, cosines[0], rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, F32])
    @pytest.mark.parametrize("scale", [1e-3, 1.0])
    @pytest.mark.parametrize("common", [0.0, 0.7, 20.0])
    def test_long_tensors_need_no_rounding_of_elements(
        self, dtype: torch.dtype, scale: float, common: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sources = [(scale * x).to(dtype) for x in tensors(2, (400, 300), common=common)]
        once = geometry_of(sources).cosine("whole", 1e-7)
        monkeypatch.setattr(geometry, "_SUM_ELEMENTS", 2**20)
        each = geometry_of(sources).cosine("whole", 1e-7)
        torch.testing.assert_close(once, each, rtol=torch.finfo(dtype).eps, atol=2e-5)
        # lengths are rounded to the dtype before the vectors are divided by them
        exact = torch.cosine_similarity(*(vectors(source, "whole") for source in sources))
        torch.testing.assert_close(once, exact, rtol=2 * torch.finfo(dtype).eps, atol=2e-5)

    @pytest.mark.parametrize("along", ALONG)
    def test_blocks_do_not_show(self, along: Along, monkeypatch: pytest.MonkeyPatch) -> None:
        made = geometry_of(tensors(2))
        whole = made.products(), made.cosine(along, 1e-7), made.mean_cosine(along)
        monkeypatch.setattr(geometry, "_BLOCK_ELEMENTS", 13)
        for a, b in zip(
            whole, (made.products(), made.cosine(along, 1e-7), made.mean_cosine(along)), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)

    @pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0), (), (1,), (3, 1)])
    @pytest.mark.parametrize("along", ALONG)
    def test_small_and_empty_tensors(self, shape: tuple[int, ...], along: Along) -> None:
        made = geometry_of(tensors(2, shape))
        assert made.products().shape == (2, 2)
        cosine_L = made.cosine(along, 1e-7)
        assert bool(((cosine_L.abs() - 1).abs() < 1e-6).logical_or(cosine_L == 0).all()) or shape == (3, 1)
        assert len(of_elements(cosine_L, shape, along, 0, math.prod(shape))) == math.prod(shape)

    @pytest.mark.parametrize("along", ALONG)
    def test_each_element_has_the_number_of_its_vector(self, along: Along) -> None:
        places = torch.arange(math.prod(SHAPE)).view(SHAPE)
        rows = vectors(places, along).long()
        number_L = torch.arange(len(rows)) * 10
        expected_N = torch.empty(places.numel(), dtype=torch.long)
        for row, number in zip(rows, number_L, strict=True):
            expected_N[row] = number
        for start, stop in ((0, 210), (13, 100), (7, 7), (209, 210)):
            assert torch.equal(of_elements(number_L, SHAPE, along, start, stop), expected_N[start:stop])

    def test_zeros_are_orthogonal_to_everything(self) -> None:
        source, _ = tensors(2)
        zero = torch.zeros_like(source)
        assert float(geometry_of([source, zero]).cosine("whole", 1e-7)) == 0.0
        assert float(geometry_of([source, zero]).mean_cosine("whole")) == 0.0

    def test_what_a_dtype_does_not_hold_is_not_rounded_to_infinity(self) -> None:
        assert held(torch.tensor([1e6, 1.0009765], dtype=F64), torch.float16).tolist() == [1e6, 1.0009765625]

    def test_float16_inner_products_beyond_its_range(self) -> None:
        sources = [(100 * tensor).half() for tensor in tensors(3, (100, 50))]
        exact = geometry_of([source.double() for source in sources]).mean_cosine("whole")
        assert float(geometry_of(sources).mean_cosine("whole")) == pytest.approx(float(exact), abs=1e-3)


class TestNuslerp:
    @pytest.mark.parametrize("t", [0.0, 0.3, 1.0, 1.2])
    def test_it_follows_the_arc(self, t: float) -> None:
        a, b = tensors(2)
        (cosine,) = torch.cosine_similarity(vectors(a, "whole"), vectors(b, "whole")).tolist()
        angle = math.acos(cosine)
        expected = (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)
        parts = [number_L.float()[0] for number_L in arc(torch.tensor([cosine], dtype=F64), t, F32)]
        torch.testing.assert_close(nuslerp([a, b], None, FIRST, F32, *parts), expected, rtol=1e-5, atol=1e-5)
        base = torch.ones_like(a)
        over = nuslerp([a + base, b + base], base, FIRST, F32, *parts)
        torch.testing.assert_close(over, expected + base, rtol=1e-5, atol=1e-5)

    def test_parallel_and_opposite_vectors_take_the_chord(self) -> None:
        parts = arc(torch.tensor([1.0, -1.0], dtype=F64), 0.25, F32)
        assert [part.tolist() for part in parts] == [[0.75, 0.75], [0.25, 0.25], [1.0, 1.0]]

    def test_weights_say_how_far(self) -> None:
        assert share_of_second([1.0, 3.0]) == 0.75
        assert share_of_second([0.5, -0.5]) == 0.5


class TestSphericalMeans:
    def test_multislerp_has_the_mean_direction_and_the_mean_length(self) -> None:
        sources, weights = tensors(3), torch.tensor([0.2, 0.5, 0.9], dtype=F64)
        weights_M = weights / weights.sum()
        flat = [vectors(source, "whole")[0] for source in sources]
        direction = sum(w * x / x.norm() for w, x in zip(weights_M, flat, strict=True))
        length = sum(w * x.norm() for w, x in zip(weights_M, flat, strict=True))
        coefficients = multislerp_coefficients(
            geometry_of(sources).products(), weights.tolist(), normalize=True, eps=1e-8
        )
        expected = length * direction / direction.norm()
        torch.testing.assert_close(
            merged(sources, coefficients).flatten().double(), expected, rtol=1e-5, atol=1e-5
        )

    def test_multislerp_without_a_direction_is_the_weighted_sum(self) -> None:
        products = torch.tensor([[4.0, -4.0], [-4.0, 4.0]], dtype=F64)
        assert multislerp_coefficients(products, [1.0, 1.0], normalize=True, eps=1e-8) == [0.5, 0.5]
        assert multislerp_coefficients(torch.zeros(3, 3, dtype=F64), [1, 1, 2], True, 1e-8) == [
            0.25,
            0.25,
            0.5,
        ]

    def test_a_single_model_is_itself(self) -> None:
        assert multislerp_coefficients(torch.ones(1, 1, dtype=F64), [0.2], normalize=False, eps=1e-8) == [1.0]
        assert karcher_coefficients(torch.full((1, 1), 4.0, dtype=F64), 10, 1e-5) == [1.0]

    def test_at_the_karcher_mean_the_ways_to_all_models_cancel(self) -> None:
        sources = tensors(4, common=0.4)
        coefficients = karcher_coefficients(geometry_of(sources).products(), 100, 1e-12)
        mean = merged(sources, coefficients).flatten().double()
        flat = [vectors(source, "whole")[0] for source in sources]
        assert float(mean.norm()) == pytest.approx(sum(float(x.norm()) for x in flat) / 4, rel=1e-6)
        point, ways = mean / mean.norm(), torch.zeros_like(mean)
        for x in flat:
            cosine = float(point @ x / x.norm())
            ways += math.acos(cosine) / math.sqrt(1 - cosine**2) * (x / x.norm() - cosine * point)
        assert float(ways.norm()) < 1e-5

    def test_karcher_of_zeros_opposites_and_copies(self) -> None:
        a, b = (vectors(tensor, "whole")[0] for tensor in tensors(2))

        def of(*flat: Tensor) -> list[float]:
            stacked = torch.stack(flat)
            return karcher_coefficients(stacked @ stacked.T, 10, 1e-5)

        assert of(a, a, a) == pytest.approx([1 / 3] * 3)
        assert of(a, 3 * a) == pytest.approx([1.0, 1 / 3])  # twice the direction of a, with length 2
        assert of(a, -a) == [1.0, 0.0]
        assert sum(of(0 * a, 0 * b)) == pytest.approx(1.0)
        with_zero, without = of(a, 0 * a, b), of(a, b)
        assert with_zero[1] == 0.0
        assert [with_zero[0], with_zero[2]] == pytest.approx([2 / 3 * c for c in without])

    @pytest.mark.parametrize("method", ["multislerp", "karcher"])
    def test_models_permute(self, method: str) -> None:
        products = geometry_of(tensors(3)).products()
        order = [2, 0, 1]

        def of(products: Tensor, weights: list[float]) -> list[float]:
            if method == "karcher":
                return karcher_coefficients(products, 10, 1e-9)
            return multislerp_coefficients(products, weights, normalize=True, eps=1e-8)

        weights = [0.2, 0.5, 0.9]
        permuted = of(products[order][:, order], [weights[i] for i in order])
        assert permuted == pytest.approx([of(products, weights)[i] for i in order], rel=1e-6)


class TestModelStock:
    @pytest.mark.parametrize(("cosine", "models"), [(0.5, 2), (0.2, 3), (0.9, 4), (0.0, 2)])
    def test_the_share_is_equation_3(self, cosine: float, models: int) -> None:
        share_L, rest_L = stock_shares(torch.tensor([cosine], dtype=F64), models, F32)
        assert float(share_L) == pytest.approx(models * cosine / (1 + (models - 1) * cosine))
        assert float(rest_L) == pytest.approx(1 - float(share_L))

    def test_task_vectors_that_balance_out_leave_the_base(self) -> None:
        share_L, rest_L = stock_shares(torch.tensor([-0.5, -1.0], dtype=F64), 3, F32)
        assert (float(share_L[0]), float(rest_L[0])) == (0.0, 1.0)


def test_nearswap_takes_what_is_near() -> None:
    base = torch.zeros(5)
    source = torch.tensor([0.0, 0.05, 0.1, 0.2, -1.0])
    merged_N = nearswap([source], base, FIRST, F32, torch.tensor(0.1))
    torch.testing.assert_close(merged_N, torch.tensor([0.0, 0.05, 0.1, 0.1, -0.1]))
    assert not bool(nearswap([source.half()], base.half(), FIRST, torch.float16, torch.tensor(0.0)).any())


class TestArceeFusion:
    def test_only_outliers_are_taken_over(self) -> None:
        base, other = tensors(2, (40, 30), common=1.0)
        source = base + 0.1 * other
        found = importance(source.flatten(), base.flatten(), (40, 30), F32)
        p, q = source.double().softmax(1), base.double().softmax(1)
        divergence_R = (p * (p / q).log()).sum(1)
        torch.testing.assert_close(found.divergence_R, divergence_R, rtol=1e-3, atol=1e-7)
        scores = (source - base).double().abs() * divergence_R[:, None]
        low, middle, high = (scores.flatten().quantile(share) for share in (0.25, 0.5, 0.75))
        assert found.threshold == pytest.approx(float(middle + 1.5 * (high - low)), rel=1e-3)
        merged_N = arcee_fusion(
            [source.flatten()],
            base.flatten(),
            FIRST,
            F32,
            found.divergence_R.float().repeat_interleave(30),
            torch.tensor(found.threshold),
        )
        taken = (merged_N.view(40, 30) - source).abs() < 1e-6
        outliers = scores > found.threshold * 1.001
        assert bool(taken[outliers].all())
        assert 0.02 < float(taken.double().mean()) < 0.15

    def test_float16_probabilities_of_zero(self) -> None:
        base = torch.linspace(0, 60, 50).half()
        found = importance(base.flip(0), base, (50,), torch.float16)
        assert bool(found.divergence_R.isfinite().all())

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, F32])
    def test_quantiles_are_those_of_sorting(self, dtype: torch.dtype) -> None:
        for count in (1, 2, 7, 5001):
            numbers = tensors(1, (count,))[0].to(dtype)
            numbers[::7], numbers[1::9] = 0.0, -0.0
            blocks = torch.split(numbers, 100)
            found = quantiles(blocks.__iter__, count, (0.25, 0.5, 0.75))
            assert found == [float(numbers.float().quantile(share)) for share in (0.25, 0.5, 0.75)]


class TestSubspaces:
    @pytest.mark.parametrize("shape", [(6, 9), (9, 6), (1, 5), (4, 4)])
    def test_polar_is_that_of_the_singular_value_decomposition(self, shape: tuple[int, int]) -> None:
        (matrix,) = tensors(1, shape)
        left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
        orthogonal, found = polar(matrix.double())
        torch.testing.assert_close(orthogonal, left @ right)
        torch.testing.assert_close(found.sort(descending=True).values, values)

    def test_directions_without_any_strength_are_left_out(self) -> None:
        a, b = (tensor.double() for tensor in tensors(2, (8, 3)))
        orthogonal, values = polar(a @ b.T)
        assert len(values) == 3
        assert int(torch.linalg.matrix_rank(orthogonal)) == 3
        assert not bool(polar(torch.zeros(3, 4, dtype=F64))[0].any())

    def test_iso_c_makes_all_singular_values_their_mean(self) -> None:
        deltas = [tensor.double() for tensor in tensors(3, (6, 9))]
        merged_RC = isotropic(deltas)
        values = torch.linalg.svdvals(sum(deltas))
        torch.testing.assert_close(torch.linalg.svdvals(merged_RC), values.mean().expand(6))
        assert float((merged_RC * sum(deltas)).sum()) > 0

    def test_tsv_merge_of_one_model_is_that_model(self) -> None:
        (delta,) = (tensor.double() for tensor in tensors(1, (6, 9)))
        torch.testing.assert_close(merged_singular_vectors([delta]), delta)

    def test_tsv_merge_adds_up_tasks_that_do_not_interfere(self) -> None:
        first, second = torch.zeros(6, 8, dtype=F64), torch.zeros(6, 8, dtype=F64)
        first[:3, :4], second[3:, 4:] = (tensor.double() for tensor in tensors(2, (3, 4)))
        torch.testing.assert_close(merged_singular_vectors([first, second]), first + second)

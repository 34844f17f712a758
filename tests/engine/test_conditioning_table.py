"""ConditioningTable: what every block would compute for itself at a row, computed before the loop."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from fastcond.config import CONDITIONINGS
from fastcond.diffusion import NoiseSchedule, StepTable, ddim, heun
from fastcond.engine import ConditioningTable
from fastcond.nn import ConditionalUNet
from tests.support.networks import small_unet
from tests.tolerances import assert_network_close, assert_parity

LABELS = torch.tensor([2, 0, 2, 3, 0])  # 3 is the null label, 1 is not asked for
SCHEDULE = NoiseSchedule.linear(1000)
NETWORKS: list[dict[str, Any]] = [
    {"conditioning": conditioning, "class_embedding_mlp": mlp, **more}
    for conditioning in CONDITIONINGS
    for mlp in (False, True)
    for more in ({}, {"resample": "resnet", "block_out_channels": (8, 16, 24), "layers_per_block": 2})
]


@pytest.fixture(params=NETWORKS, ids=lambda changes: "-".join(str(value) for value in changes.values()))
def model(request: pytest.FixtureRequest) -> ConditionalUNet:
    return small_unet(**request.param).eval()


def steps() -> StepTable:
    return heun(SCHEDULE, 10)


@contextmanager
def hooked_linears(model: ConditionalUNet, names: list[str], hook: Any) -> Iterator[None]:
    """hook(name, the Linear's output) -> what takes its place."""
    handles = [
        model.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: hook(name, output)) for name in names
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def models_own(model: ConditionalUNet, names: list[str], timestep: int, labels: Tensor) -> dict[str, Tensor]:
    """What the Linears compute within a forward pass of the model."""
    found: dict[str, Tensor] = {}
    x = torch.zeros(len(labels), 3, *model.config.image_size, dtype=next(model.parameters()).dtype)
    with hooked_linears(model, names, lambda name, output: found.__setitem__(name, output)):
        model(x, torch.tensor(timestep).expand(len(labels)), labels)
    assert sorted(found) == sorted(names), "every site is reached"
    return found


def joined(parts: tuple[Tensor | None, Tensor]) -> Tensor:
    return torch.cat([part for part in parts if part is not None], dim=1)


def test_values_are_the_models_own(model: ConditionalUNet) -> None:
    """Within the parity rule, at every row: products of other shapes add in another order."""
    table = ConditioningTable(model, steps().timesteps, LABELS)
    names = [site.name for site in table.sites]
    exact = copy.deepcopy(model).double()
    for row, timestep in enumerate(steps().timesteps.tolist()):
        ours = table.modulation(row, table.slots(LABELS))
        theirs, truth = (models_own(network, names, timestep, LABELS) for network in (model, exact))
        for name in names:
            # The angle t f is the float32 of both, so the truth is that of the same angle.
            assert joined(ours[name]).dtype == torch.float32
            assert_network_close(joined(ours[name]), theirs[name])
        assert_parity(
            f"row {row}",
            torch.cat([joined(ours[name]) for name in names], dim=1),
            torch.cat([theirs[name] for name in names], dim=1),
            torch.cat([truth[name] for name in names], dim=1),
            magnitude=10.0,
            terms=model.config.embedding_dim,
        )


def test_a_network_needs_nothing_else_of_timestep_and_label(model: ConditionalUNet, monkeypatch: pytest.MonkeyPatch) -> None:
    """With NaN for an embedding, and each Linear's output from the table, the output is the model's."""
    table = ConditioningTable(model, steps().timesteps, LABELS)
    x = torch.randn(5, 3, *model.config.image_size, generator=torch.Generator().manual_seed(1))
    row = 4
    with torch.no_grad():
        expected = model(x, steps().timesteps[row].expand(5), LABELS)
        values = table.modulation(row, table.slots(LABELS))
        monkeypatch.setattr(model, "embed", lambda timestep, label: torch.full((5, model.config.embedding_dim), torch.nan))
        with hooked_linears(model, [site.name for site in table.sites], lambda name, _: joined(values[name])):
            actual = model(x, steps().timesteps[row].expand(5), LABELS)
    assert_network_close(actual, expected)


def test_scale_and_shift_are_views_of_one_gather(model: ConditionalUNet) -> None:
    table = ConditioningTable(model, steps().timesteps, LABELS)
    parts = [part for pair in table.modulation(0, table.slots(LABELS)).values() for part in pair if part is not None]
    assert len({part.untyped_storage().data_ptr() for part in parts}) == 1
    assert sum(part.shape[1] for part in parts) == table.width
    assert all(part.shape == (5, part.shape[1]) and part.stride() == (table.width, 1) for part in parts)
    for site in table.sites:
        scale, shift = site.parts(table.row(0))
        assert (scale is None) == (not site.modulates)
        assert shift.shape == (3, site.channels) and (scale is None or scale.shape == shift.shape)


def test_labels_and_timesteps_are_computed_once(model: ConditionalUNet) -> None:
    table = ConditioningTable(model, steps().timesteps, LABELS)
    assert table.labels.tolist() == [0, 2, 3] and table.num_rows == 19
    assert table.slots(LABELS).tolist() == [1, 0, 1, 2, 0]
    values, entry_of_row = table.whole()
    assert values.shape == (10, 3, table.width)
    assert entry_of_row.tolist() == [0, *(entry for entry in range(1, 10) for _ in range(2))]
    assert table.row(1).data_ptr() == table.row(2).data_ptr(), "corrector and predictor of one timestep"


def test_a_row_tensor_gathers_from_the_whole_table(model: ConditionalUNet) -> None:
    table = ConditioningTable(model, steps().timesteps, LABELS)
    (values, entry_of_row), slots = table.whole(), table.slots(LABELS)
    for number in range(table.num_rows):
        row = torch.tensor([number])
        gathered = values.flatten(0, 1).index_select(0, entry_of_row.index_select(0, row) * len(table.labels) + slots)
        expected = table.modulation(number, slots)
        for name, parts in table.split(gathered).items():
            assert torch.equal(joined(parts), joined(expected[name]))


@pytest.mark.parametrize("entries", [1, 3, 7, 100])
def test_memory_is_bounded(entries: int) -> None:
    model = small_unet().eval()
    timesteps = ddim(SCHEDULE, 20).timesteps
    whole = ConditioningTable(model, timesteps, LABELS)
    most = entries * len(whole.labels) * whole.width * 4
    table = ConditioningTable(model, timesteps, LABELS, max_bytes=most)
    for row in [*range(20), 3, 19, 0]:
        assert table.row(row).untyped_storage().nbytes() <= most
        assert_network_close(table.row(row), whole.row(row))
    assert whole.is_whole and table.is_whole == (entries >= 20)
    if entries < 20:
        with pytest.raises(ValueError, match="20 rows of 3 labels exceed max_bytes"):
            table.whole()


def test_a_window_is_computed_once() -> None:
    model = small_unet().eval()
    calls: list[int] = []
    handle = model.time_embedding.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    whole = ConditioningTable(model, torch.arange(12).flip(0), LABELS)
    assert not calls, "nothing before it is asked for"
    table = ConditioningTable(model, torch.arange(12).flip(0), LABELS, max_bytes=5 * 3 * whole.width * 4)
    for row in range(12):
        table.row(row)
    handle.remove()
    assert calls == [5, 5, 2]


def test_half_precision_stays_half() -> None:
    model = small_unet(class_embedding_mlp=True).eval().bfloat16()
    table = ConditioningTable(model, steps().timesteps, LABELS)
    names = [site.name for site in table.sites]
    ours, theirs = table.modulation(3, table.slots(LABELS)), models_own(model, names, int(steps().timesteps[3]), LABELS)
    exact = models_own(copy.deepcopy(model).double(), names, int(steps().timesteps[3]), LABELS)
    assert all(joined(ours[name]).dtype == torch.bfloat16 for name in names)
    everything = [torch.cat([found[name] for name in names], dim=1) for found in (theirs, exact)]
    assert_parity("bf16", torch.cat([joined(ours[name]) for name in names], dim=1), *everything)


def test_it_needs_no_gradient_and_leaves_the_model_alone() -> None:
    model = small_unet()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    table = ConditioningTable(model, steps().timesteps, LABELS)
    assert not table.row(0).requires_grad and model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("timesteps", "labels", "message"),
    [
        (torch.arange(3), torch.tensor([0, 4]), "labels holds 4; values lie in 0 to 3"),
        (torch.arange(3), torch.tensor([-1]), "labels holds -1"),
        (torch.arange(3), torch.tensor([], dtype=torch.int64), r"labels is torch.int64 \[0\]"),
        (torch.arange(3), torch.tensor([0.0]), "labels is torch.float32"),
        (torch.tensor(3), torch.tensor([0]), r"timesteps is torch.int64 \[\]"),
    ],
)
def test_what_does_not_fit_is_refused(timesteps: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConditioningTable(small_unet(), timesteps, labels)


def test_rows_and_labels_outside_the_table_are_refused() -> None:
    table = ConditioningTable(small_unet(), torch.arange(3), torch.tensor([0, 2]))
    for row in (-1, 3):
        with pytest.raises(ValueError, match=f"row is {row}; the table has rows 0 to 2"):
            table.row(row)
    for label in (1, 3):
        with pytest.raises(ValueError, match=rf"label {label} is not in the table, which holds \[0, 2\]"):
            table.slots(torch.tensor([0, label]))

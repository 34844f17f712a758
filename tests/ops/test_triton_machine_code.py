"""Gates on the machine code of every Triton kernel, compiled for GPUs that need not be there.

No local memory and so no spills, no fp64, no atomics; tensors are read and written in whole 128-bit accesses, as often as their
bytes ask for and not once more.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

pytest.importorskip("triton")

from tests.support.compiled import ARCHITECTURES, Launch, MachineCode, compiling, machine_code
from tests.support.triton_variants import DTYPES, FORMATS, PHILOX, STEPS, Norm, Step, norms

LOCAL_MEMORY = r"(LDL|STL)\b.*"
FP64 = r"D(ADD|MUL|FMA|SETP|MNMX)\b.*|.*\.F64\b.*"
ATOMICS = r"(ATOM|ATOMG|ATOMS|RED|REDG)\b.*"
CLUSTER = r"UCGABAR_.*|MAPA.*|.*\.CLUSTER.*|SYNCS.*"
ACCESS = 128


def assert_clean(launch: Launch) -> MachineCode:
    code = machine_code(launch)
    assert code.local == 0, f"{launch.name}: {code.local} bytes of local memory"
    for what, pattern in (("local memory", LOCAL_MEMORY), ("fp64", FP64), ("atomics", ATOMICS)):
        assert not code.matching(pattern), f"{launch.name}: {what}: {dict(code.matching(pattern))}"
    return code


OF_TILE = "pointers"  # what the source lines that move tiles hold, and no other

# How often a kernel goes over its tile.
TILES_READ_AND_WRITTEN = {
    "forward_kernel": (1, 1),
    "backward_kernel": (2, 1),
    "partial_statistics_kernel": (1, 0),
    "apply_kernel": (1, 1),
    "partial_gradients_kernel": (2, 0),
    "apply_gradients_kernel": (2, 1),
}


def tile_bytes(norm: Norm, launch: Launch) -> tuple[int, int]:
    """Of a program's tile as it is, and padded to powers of two: the compiler may or may not leave padding out."""
    constants, itemsize = launch.constants, DTYPES[norm.dtype].itemsize
    rows = constants["GROUPS"] * constants["C"] // constants["G"]
    exact = rows * min(constants["HW"], constants["BLOCK_HW"])
    return exact * itemsize, constants["BLOCK_C"] * constants["BLOCK_HW"] * itemsize


def assert_traffic(
    launch: Launch, code: MachineCode, loads: Sequence[int], stores: Sequence[int], source: str, what: str
) -> None:
    """Whole accesses move as many bytes a program as (at least, at most) `loads` and `stores` say.

    source: what the lines that move tiles hold, where other lines may use whole accesses too; on those lines there is none but
    whole accesses.
    """
    for kind, (least, most) in (("LDG", loads), ("STG", stores)):
        widths = code.accesses(kind, source)
        assert not source or all(width >= ACCESS for width in widths), f"{what} {launch.name}: {kind} {dict(widths)}"
        moved = launch.threads * sum(count * width // 8 for width, count in widths.items() if width >= ACCESS)
        assert least <= moved <= most, f"{what} {launch.name}: {kind} moves {moved} bytes, {least} to {most} are a program's tile"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
class TestAdaGroupNorm:
    def test_every_variant(self, architecture: int, dtype: str, layout: str) -> None:
        for norm in norms(architecture):
            if (norm.dtype, norm.layout) != (dtype, layout):
                continue
            with compiling(architecture) as launches:
                norm.call()
            self.check(norm, launches)

    @staticmethod
    def check(norm: Norm, launches: list[Launch]) -> None:
        forward, backward = norm.plans()
        names = ["partial_statistics_kernel", "apply_kernel"] if forward.tier == "T2" else ["forward_kernel"]
        names += ["partial_gradients_kernel", "apply_gradients_kernel"] if backward.tier == "T2" else ["backward_kernel"]
        assert [launch.name for launch in launches] == names + ["batch_sums_kernel"] * norm.affine, norm
        for launch in launches:
            code = assert_clean(launch)
            if launch.name in TILES_READ_AND_WRITTEN:
                inputs, outputs = TILES_READ_AND_WRITTEN[launch.name]
                tile = tile_bytes(norm, launch)
                assert_traffic(
                    launch, code, [inputs * size for size in tile], [outputs * size for size in tile], OF_TILE, str(norm)
                )
                cluster = launch.kernel.metadata.num_ctas > 1
                assert cluster == bool(code.matching(CLUSTER)), f"{norm}: cluster instructions of {launch.name}"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_diffusion_step(architecture: int) -> None:
    for variant in STEPS:
        with compiling(architecture) as launches:
            variant.call()
        (launch,) = launches
        check_step(variant, launch)


def check_step(variant: Step, launch: Launch) -> None:
    code = assert_clean(launch)
    loads = launch.constants["BLOCK"] * (4 + DTYPES[variant.dtype].itemsize * (1 + variant.guided) + 4 * variant.history)
    stores = launch.constants["BLOCK"] * 4 * (variant.halves + 1)
    assert_traffic(launch, code, (loads, loads), (stores, stores), "", str(variant))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("what", PHILOX)
def test_philox(what: str, architecture: int) -> None:
    with compiling(architecture) as launches:
        PHILOX[what]()
    (launch,) = launches
    stores = 4 * launch.constants["BLOCK"] * (8 if what == "words" else 4)
    assert_traffic(launch, assert_clean(launch), (0, 0), (stores, stores), "", what)
